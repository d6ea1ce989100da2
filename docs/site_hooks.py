"""Makes the site of the same files that are read within the project: MkDocs calls these functions."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files, config):
    """Adds README.md as the start page."""
    text = (ROOT / 'README.md').read_text()
    text = re.sub(r'(\]\(|src=")docs/', r'\1', text)
    files.append(File.generated(config, 'index.md', content=re.sub(r'\]\((?!http|#|[\w]+\.md)', '](../', text)))
    return files


def on_page_markdown(markdown, page, **_):
    """Takes away links to files of the project that are not on the site; their names stay."""
    return re.sub(r'\[([^\]]+)\]\(\.\./[^)]*\)', r'`\1`', markdown)
