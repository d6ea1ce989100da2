"""Makes the site of the same files that are read within the project: MkDocs calls these functions."""

import re
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.structure.files import File
from nbconvert import MarkdownExporter

ROOT = Path(__file__).parents[1]
SCHEMA = 'cfg/report/results.schema.json'


def on_files(files, config):
    """Adds README.md as the start page, the schema of results for who has no package, and the tutorial."""
    text = re.sub(r'(\]\(|src=")docs/', r'\1', (ROOT / 'README.md').read_text())
    made = {'index.md': text, Path(SCHEMA).name: (ROOT / SCHEMA).read_text(), **notebook()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def notebook():
    """Returns {name: content} of the tutorial as a page, with its pictures and its equations; nothing is run."""
    found = nbformat.read(ROOT / 'docs' / 'tutorial.ipynb', as_version=4)
    for cell in found.cells:
        if cell.cell_type == 'markdown':  # browsers know MathML, so no script has to be fetched
            cell.source = re.sub(r'(\$\$?)(.+?)\1', as_mathml, cell.source, flags=re.DOTALL)
        else:  # a widget needs a kernel
            cell.outputs = [
                each for each in cell.outputs if 'application/vnd.jupyter.widget-view+json' not in each.get('data', {})
            ]
    text, resources = MarkdownExporter().from_notebook_node(found)
    return {'tutorial.md': text.replace('![png]', '![What the code above draws]'), **resources['outputs']}


def as_mathml(tex):
    return convert(tex[2], display='block' if tex[1] == '$$' else 'inline')


def on_page_markdown(markdown, **_):
    """Takes away links to files of the project that are no page of the site, whose names stay, and sets equations."""

    def kept(link):
        beside, page = (ROOT / 'docs' / link[2]), not link[2].startswith('../')
        if page and (beside.is_file() or not (ROOT / link[2]).exists()):
            return link[0]  # one that leads nowhere is for MkDocs to report
        return link[1]

    markdown = markdown.replace(f'(../{SCHEMA})', f'({Path(SCHEMA).name})').replace('tutorial.ipynb)', 'tutorial.md)')
    markdown = re.sub(r'\[([^\]]+)\]\(([^)#:]+)(?:#[^)]*)?\)', kept, markdown)
    return re.sub(r'(\$\$)(.+?)\1', as_mathml, markdown, flags=re.DOTALL)


def on_page_content(html, page, **_):
    """Opens the sources of the page of equations, whose purpose they are."""
    shut = '<details class="mkdocstrings-source"'
    return html.replace(shut, f'{shut} open') if page.file.src_uri == 'method.md' else html
