"""URLs in, bodies as they came out, in tar shards that anything can read; what failed with its cause.

`settings.py` says what may be set, `crawl.py` is the order of things, `turns.py` whose turn it is, `fetch.py` one
request, `client.py` the connection, `public.py` which addresses may be asked, `urls.py` what a URL means, `shelf.py`
what lies where. Knows nothing about lists, samples, stages or pixels.
"""

from curator.download.crawl import Report, download
from curator.download.settings import DownloadSettings
from curator.download.shelf import Place, Shelf

__all__ = ["DownloadSettings", "Place", "Report", "Shelf", "download"]
