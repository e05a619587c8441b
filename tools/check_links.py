"""Check a built site: internal links and anchors exist, images have a text, nothing comes from other hosts.

python tools/check_links.py _build/html
"""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.links: list[str] = []  # what a reader may follow, or the browser loads
        self.loads: list[str] = []  # what the browser loads without asking
        self.anchors: set[str] = set()
        self.problems: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        a = {k: v or "" for k, v in attrs}
        self.anchors |= {a[k] for k in ("id", "name") if k in a}
        loads = [a["src"]] if "src" in a else []
        if tag == "link" and {"stylesheet", "preload", "icon", "modulepreload"} & {*a.get("rel", "").split()}:
            loads.append(a["href"])
        self.loads += loads
        self.links += loads + ([a["href"]] if tag in ("a", "area", "use") and "href" in a else [])
        if tag == "img" and not a.get("alt", "").strip() and a.get("aria-hidden") != "true":
            self.problems.append(f"an image has no text for those who cannot see it: {a.get('src', '')[:80]}")


def check(site: Path) -> list[str]:
    paths = (p.resolve() for p in sorted(site.rglob("*.html")) if "_static" not in p.parts)  # templates
    pages = {p: Page(p.read_text(encoding="utf-8")) for p in paths}
    found = []
    for path, page in pages.items():
        problems = list(page.problems)
        problems += [f"loads {u} from another host" for u in page.loads if urlsplit(u).netloc]
        for link in dict.fromkeys(page.links):
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                problems.append(f"{link} does not exist")
            elif url.fragment and target in pages and unquote(url.fragment) not in pages[target].anchors:
                problems.append(f"{link}: that page has no such anchor")
        found += [f"{path.relative_to(site.resolve())}: {problem}" for problem in problems]
    return found if pages else [f"{site} holds no page; build it first: make book"]


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print("\n".join(problems) or "All internal links, anchors and images are in order.")
    sys.exit(bool(problems))
