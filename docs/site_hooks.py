"""Makes the site of the same files that are read within the project: MkDocs calls these functions."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
SCHEMA = 'cfg/report/results.schema.json'


def on_files(files, config):
    """Adds README.md as the start page, and the schema of results for who has no package."""
    text = re.sub(r'(\]\(|src=")docs/', r'\1', (ROOT / 'README.md').read_text())
    files.append(File.generated(config, 'index.md', content=text))
    files.append(File.generated(config, Path(SCHEMA).name, content=(ROOT / SCHEMA).read_text()))
    return files


def on_page_markdown(markdown, **_):
    """Takes away links to files of the project that are no page of the site; their names stay."""

    def kept(link):
        beside, page = (ROOT / 'docs' / link[2]), not link[2].startswith('../')
        if page and (beside.is_file() or not (ROOT / link[2]).exists()):
            return link[0]  # one that leads nowhere is for MkDocs to report
        return link[1]

    markdown = markdown.replace(f'(../{SCHEMA})', f'({Path(SCHEMA).name})')
    return re.sub(r'\[([^\]]+)\]\(([^)#:]+)(?:#[^)]*)?\)', kept, markdown)
