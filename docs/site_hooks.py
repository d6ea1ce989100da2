"""Makes the site of the same files that are read within the project: MkDocs calls these functions."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]


def on_files(files, config):
    """Adds README.md as the start page."""
    text = re.sub(r'(\]\(|src=")docs/', r'\1', (ROOT / 'README.md').read_text())
    files.append(File.generated(config, 'index.md', content=text))
    return files


def on_page_markdown(markdown, **_):
    """Takes away links to files of the project that are no page of the site; their names stay."""

    def kept(link):
        name, path = link[1], link[2]
        outside = (ROOT / path).exists() or path.startswith('../')
        return name if outside and not (ROOT / 'docs' / path).is_file() else link[0]

    return re.sub(r'\[([^\]]+)\]\(([^)#:]+)\)', kept, markdown)
