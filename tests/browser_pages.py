"""Pages in a real browser, with the network off."""

from contextlib import contextmanager

DESKTOP = (1440, 900)
# What scripts do without: browsers of early 2023 lack it.
_LATER = """
delete Map.groupBy;
delete Object.groupBy;
for (const name in Element.prototype) if (name.startsWith("aria")) delete Element.prototype[name];
"""


class Watched:
    """A page that remembers what went wrong on it, and what it asked for."""

    def __init__(self, page):
        self.page = page
        self.complaints = []
        self.requests = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._see(request.url))

    def _hear(self, message):
        if message.type in {"error", "warning"}:
            self.complaints.append(message.text)

    def _see(self, url):
        if not url.startswith(("file:", "data:")):
            self.requests.append(url)


@contextmanager
def opened(
    chromium, path, *, size=DESKTOP, colours="light", wait=True, address="", script=True, before=""
):
    """A file opened from disk with the network off."""
    width, height = size
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme=colours,
        offline=True,
        java_script_enabled=script,
    )
    watched = Watched(context.new_page())
    watched.page.add_init_script(_LATER + before)
    watched.page.goto(path.as_uri() + address)
    if wait:
        watched.page.wait_for_selector("html[data-drawn=all]", state="attached")
    yield watched
    context.close()
