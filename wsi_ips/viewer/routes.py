"""HTTP routes of the viewer: worklist, slides, tiles, maps and reviews.

Requests name slides by id, never by path; ids are looked up, numbers are checked, and no part of a request is used as
a path. Reviews are the only thing that can be written.

===========================================  ==========================================================
``GET /``                                    the page; ``/assets/NAME`` its files
``GET /api/worklist``                        title, classes, slides, reviews, downloads
``GET /api/slides/ID``                       size, scale, grid, layers, outlines, downloads
``GET /api/slides/ID/tiles``                 tile table, column after column, little-endian
``GET /api/slides/ID/layers/KIND``           a map, uint8 (rows, columns)
``GET /slides/ID/dz/LEVEL/COLUMN_ROW.jpg``   Deep Zoom tile
``GET /slides/ID/patches/TILE.jpg``          a tile as the model sees it
``GET /downloads/NAME``                      a file of the run; ``/slides/ID/downloads/NAME``: of a slide
``GET /reviews.csv``                         newest review of every slide
``PUT /api/slides/ID/review``                verdict, note, reviewer
===========================================  ==========================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from wsi_ips.errors import RunDatabaseError, SlideError, SlideNotFoundError, WsiIpsError
from wsi_ips.viewer.assets import MEDIA_TYPES, page_files
from wsi_ips.viewer.collection import Collection, Detail, Download, TileTable
from wsi_ips.viewer.deepzoom import TILE_PX, Pixels
from wsi_ips.viewer.guard import is_same_origin
from wsi_ips.viewer.reviews import Review, ReviewStore

T = TypeVar("T")
MOST_BODY = 64 * 1024  # longest review, bytes
WRITE_HEADER = "x-wsi-ips"  # a form or an image on a foreign page cannot send it
KEEP = {"cache-control": "private, max-age=86400, immutable"}  # for URLs that contain the slide's version
FRESH = {"cache-control": "no-cache"}


class Viewer:
    """Request handlers; ``library`` is the path of OpenSeadragon."""

    def __init__(self, collection: Collection, library: Path, *, threads: int, cache_mb: int) -> None:
        self._collection = collection
        self._pixels = Pixels(collection, threads=threads, cache_mb=cache_mb)
        self._reviews = ReviewStore(collection.reviews) if collection.reviews else None
        self._assets = {**page_files(), "openseadragon.js": library}

    def application(self) -> Starlette:
        """Return the routes, to be wrapped in :class:`wsi_ips.viewer.guard.Guard`."""
        slide = "/slides/{slide}"
        return Starlette(
            routes=[
                Route("/", self._page),
                Route("/assets/{name}", self._asset),
                Route("/api/worklist", self._worklist),
                Route(f"/api{slide}", self._slide),
                Route(f"/api{slide}/tiles", self._tiles),
                Route(f"/api{slide}/layers/{{kind}}", self._layer),
                Route(f"/api{slide}/review", self._review, methods=["PUT"]),
                Route(f"{slide}/dz/{{level}}/{{place}}.jpg", self._tile),
                Route(f"{slide}/patches/{{tile}}.jpg", self._patch),
                Route(f"{slide}/downloads/{{name}}", self._download),
                Route("/downloads/{name}", self._download),
                Route("/reviews.csv", self._reviews_csv),
            ],
            exception_handlers={
                HTTPException: _http_error,
                SlideError: _stored_file_error,
                RunDatabaseError: _stored_file_error,
                ClientDisconnect: _disconnected,
            },
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self._pixels.close()
        self._collection.close()

    async def _page(self, _: Request) -> Response:
        return FileResponse(self._assets["index.html"], media_type="text/html", headers=FRESH)

    async def _asset(self, request: Request) -> Response:
        path = self._assets.get(request.path_params["name"])
        if path is None or path.name == "index.html":
            raise HTTPException(404, "no such file of the page")
        return FileResponse(path, media_type=MEDIA_TYPES[path.suffix], headers=FRESH)

    async def _worklist(self, _: Request) -> Response:
        collection, run = self._collection, self._pixels.run
        entries = await run(collection.entries)
        latest = await run(self._reviews.latest) if self._reviews else {}
        reviews = {slide_id: asdict(review) for slide_id, review in latest.items()}
        return JSONResponse(
            {
                "title": collection.title,
                "classes": list(collection.classes),
                "model_id": collection.model_id,
                "can_review": self._reviews is not None,
                "slides": [{**asdict(entry), "review": reviews.get(entry.slide_id)} for entry in entries],
                "downloads": [_offer(d) for d in await run(collection.downloads)],
            }
        )

    async def _slide(self, request: Request) -> Response:
        slide_id = request.path_params["slide"]

        def facts() -> dict[str, Any]:
            with self._collection.open(slide_id) as reader:
                info = reader.info
            return {
                "slide_id": slide_id,
                "size": list(info.size_px0),
                "bounds": list(info.bounds),
                "mpp": None if info.mpp is None else list(info.mpp),
                "mpp_source": info.mpp_source,
                "pixels_by": info.pixels_by,
                "tile_px": TILE_PX,
                "levels": [list(size) for size in info.level_sizes],
                **_described(self._collection.detail(slide_id)),
                "downloads": [_offer(d) for d in self._collection.downloads(slide_id)],
            }

        return JSONResponse(await self._known(facts))

    async def _tiles(self, request: Request) -> Response:
        detail = await self._detail(request)
        if detail.tiles is None:
            raise HTTPException(404, "this slide has no tiles")
        columns = detail.tiles.columns.values()
        return _binary(b"".join(np.ascontiguousarray(c, c.dtype.newbyteorder("<")).tobytes() for c in columns))

    async def _layer(self, request: Request) -> Response:
        detail = await self._detail(request)
        found = next((layer for layer in detail.layers if layer.kind == request.path_params["kind"]), None)
        if found is None:
            raise HTTPException(404, "this slide has no such layer")
        return _binary(found.values.tobytes())

    async def _tile(self, request: Request) -> Response:
        place = re.fullmatch(r"(\d{1,7})_(\d{1,7})", request.path_params["place"], re.ASCII)
        if place is None:
            raise HTTPException(404, "a tile is named COLUMN_ROW")
        level = _number(request.path_params["level"])
        return await self._jpeg(self._pixels.tile(request.path_params["slide"], level, int(place[1]), int(place[2])))

    async def _patch(self, request: Request) -> Response:
        return await self._jpeg(self._pixels.patch(request.path_params["slide"], _number(request.path_params["tile"])))

    async def _download(self, request: Request) -> Response:
        slide_id = request.path_params.get("slide")
        offered = await self._known(lambda: self._collection.downloads(slide_id))
        found = next((d for d in offered if d.name == request.path_params["name"]), None)
        if found is None:
            raise HTTPException(404, "no such file to download")
        return FileResponse(found.path, filename=found.name, content_disposition_type="attachment")

    async def _reviews_csv(self, _: Request) -> Response:
        text = await self._pixels.run(self._review_store().csv)
        headers = {"content-disposition": 'attachment; filename="reviews.csv"'}
        return Response(text, media_type="text/csv", headers=headers)

    async def _review(self, request: Request) -> Response:
        """Store a review; origin, content type and our header show that a page of this server sent it."""
        if not is_same_origin(request.headers) or WRITE_HEADER not in request.headers:
            raise HTTPException(403, "reviews are written from the viewer's own page only")
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise HTTPException(415, "a review is JSON")
        store, given = self._review_store(), _review_of(await _body(request))
        slide_id = request.path_params["slide"]
        entries = await self._pixels.run(self._collection.entries)
        entry = next((e for e in entries if e.slide_id == slide_id), None)
        if entry is None:
            raise HTTPException(404, "no such slide")
        review = Review(slide_id, probability=entry.probability, model_id=self._collection.model_id, **given)
        return JSONResponse(asdict(await self._pixels.run(lambda: store.add(review))))

    def _review_store(self) -> ReviewStore:
        if self._reviews is None:
            raise HTTPException(404, "reviews need a run: `wsi-ips view RUN`")
        return self._reviews

    async def _detail(self, request: Request) -> Detail:
        return await self._known(lambda: self._collection.detail(request.path_params["slide"]))

    async def _known(self, work: Callable[[], T]) -> T:
        try:
            return await self._pixels.run(work)
        except KeyError as error:
            raise HTTPException(404, "no such slide") from error

    async def _jpeg(self, making: Awaitable[bytes]) -> Response:
        try:
            return Response(await making, media_type="image/jpeg", headers=KEEP)
        except (KeyError, IndexError) as error:
            raise HTTPException(404, "no such slide or tile") from error


def _offer(download: Download) -> dict[str, str]:
    return {"name": download.name, "title": download.title}


def _described(detail: Detail) -> dict[str, Any]:
    """Return a slide's tiles, layers and outlines as JSON, without the long arrays."""
    layers = [
        {
            **asdict(layer.look),
            "columns": layer.values.shape[1],
            "rows": layer.values.shape[0],
            "origin_px0": list(layer.origin_px0),
            "cell_px0": list(layer.cell_px0),
            "palette": layer.palette.reshape(-1).tolist(),
        }
        for layer in detail.layers
    ]
    outlines = detail.outlines
    return {
        "tiles": _grid(detail.tiles) if detail.tiles else None,
        "layers": layers,
        "outlines": outlines and [[np.round(ring, 1).tolist() for ring in lesion] for lesion in outlines],
        "notes": list(detail.notes),
        "facts": [list(fact) for fact in detail.facts],
    }


def _grid(tiles: TileTable) -> dict[str, Any]:
    return {
        "count": len(tiles),
        "columns": [[name, "i4" if values.dtype.kind == "i" else "f4"] for name, values in tiles.columns.items()],
        "shown": [asdict(column) for column in tiles.shown],
        "origin_px0": list(tiles.origin_px0),
        "stride_px0": list(tiles.stride_px0),
        "footprint_px0": list(tiles.footprint_px0),
        "patch_px": list(tiles.patch_size),
        "patch_mpp": list(tiles.patch_mpp),
    }


def _number(text: str) -> int:
    """Parse a number in a path; very long ones are refused because Python would not parse them."""
    if not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise HTTPException(404, "not a number of this slide")
    return int(text)


async def _body(request: Request) -> bytes:
    """Return the body of a request; refuse it as soon as it is too long."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise HTTPException(413, f"a review has at most {MOST_BODY} bytes")
    return body


def _review_of(body: bytes) -> dict[str, str]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "not JSON") from error
    names = ("verdict", "note", "reviewer")
    if not isinstance(given, dict) or not all(isinstance(given.get(name, ""), str) for name in names):
        raise HTTPException(400, "a review has the strings verdict, note and reviewer")
    review = {name: given.get(name, "") for name in names}
    try:
        "".join(review.values()).encode()
        Review("", **review)
    except UnicodeEncodeError as error:
        raise HTTPException(400, "a string of the review is not valid Unicode") from error
    except ValueError as error:
        raise HTTPException(400, str(error)) from error
    return review


def _binary(data: bytes) -> Response:
    return Response(data, media_type="application/octet-stream")


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


async def _stored_file_error(_: Request, error: Exception) -> Response:
    """Report a missing or damaged slide or database with our own message, without its folder."""
    assert isinstance(error, WsiIpsError)
    if isinstance(error, SlideNotFoundError):
        return JSONResponse({"error": "the slide's file is missing; see `wsi-ips status`"}, 404)
    return JSONResponse({"error": str(error)}, 503)


async def _disconnected(_: Request, __: Exception) -> Response:
    return PlainTextResponse("", 499)
