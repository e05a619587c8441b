"""Make links to notebooks in raw HTML (`<a href="02_attention.ipynb">`) lead to the pages of the site.

Sphinx resolves such links in Markdown; HTML, as in the output of a cell, it copies as it is. The
workbook's notebooks are files to download, and links to them stay as they are.
"""

import re

from docutils import nodes

LINK = re.compile(r'(href="(?!\w+:|\.\./workbook/)[^"#]+)\.(?:ipynb|md)(?=["#])')


def rewrite(app, doctree, docname):
    for node in doctree.findall(nodes.raw):
        if node["format"] == "html":
            node.children = [nodes.Text(LINK.sub(r"\1.html", node.astext()))]


def setup(app):
    app.connect("doctree-resolved", rewrite)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
