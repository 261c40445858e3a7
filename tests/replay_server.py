"""A venue on this machine: it speaks Binance's REST and websocket, from a made-up market or a recorded one.

The market goes on whether anybody listens or not, as a real one does: who comes late gets a snapshot of the book as
it is now, and numbers go on. `sent` is the truth that a recording is compared with."""
import asyncio
import gzip
import json
import random
import threading
from contextlib import suppress
from pathlib import Path

from aiohttp import WSMsgType, web

FILTERS = [{"filterType": "PRICE_FILTER", "tickSize": "0.01"}, {"filterType": "LOT_SIZE", "stepSize": "0.00001"}]


class Book:
    "A whole book, prices and sizes as the venue's text."
    def __init__(self, snapshot: dict):
        self.u = snapshot["lastUpdateId"]
        self.sides = {"b": dict(snapshot["bids"]), "a": dict(snapshot["asks"])}

    def apply(self, diff: dict) -> None:
        "One `depthUpdate`; size 0 removes a level."
        for side, levels in self.sides.items():
            for price, size in diff[side]:
                if float(size): levels[price] = size
                else: levels.pop(price, None)
        self.u = diff["u"]

    def levels(self, side: str, depth: int | None = None) -> list[list[str]]:
        "Best first."
        rows = sorted(self.sides[side].items(), key=lambda kv: float(kv[0]), reverse=side == "b")
        return [list(kv) for kv in rows[:depth]]

    def snapshot(self, limit: int) -> dict:
        "What `GET depth` says."
        return {"lastUpdateId": self.u, "bids": self.levels("b", limit), "asks": self.levels("a", limit)}


def made_up(steps: int, symbol: str = "BTCUSDT", seed: int = 1):
    "(first snapshot, messages): each step is a difference of the book, its best quotes and some trades."
    rng, u, trade_id, now = random.Random(seed), 1000, 500, 1_767_225_600_000
    def price(k): return f"{60_000 + k * 0.01:.8f}"
    def size(): return f"{rng.randint(1, 500) / 1000:.8f}"
    book = Book({"lastUpdateId": u, "bids": [[price(-k), size()] for k in range(1, 80)],
                 "asks": [[price(k), size()] for k in range(1, 80)]})
    first, messages, low = book.snapshot(1000), [], symbol.lower()
    for _ in range(steps):
        now += 10
        n = rng.randint(1, 9)
        diff = {"e": "depthUpdate", "E": now, "s": symbol, "U": u + 1, "u": u + n,
                "b": [[price(-rng.randint(1, 80)), rng.choice(["0.00000000", size(), size()])] for _ in range(3)],
                "a": [[price(rng.randint(1, 80)), rng.choice(["0.00000000", size(), size()])] for _ in range(3)]}
        u += n
        book.apply(diff)
        bid, ask = book.levels("b", 1)[0], book.levels("a", 1)[0]
        quote = {"u": u, "s": symbol, "b": bid[0], "B": bid[1], "a": ask[0], "A": ask[1]}
        messages += [(f"{low}@depth@100ms", diff), (f"{low}@bookTicker", quote)]
        for _ in range(rng.randint(0, 2)):
            trade_id += 1
            trade = {"e": "trade", "E": now, "s": symbol, "t": trade_id, "p": bid[0], "q": size(), "T": now - 1,
                     "m": rng.random() < 0.5, "M": True}
            messages.append((f"{low}@trade", trade))
    return first, messages


def recorded(path: Path):
    "The same of a capture file `<local ns> <json>`: the snapshot, and the messages that follow it."
    snapshot, messages = None, []
    with gzip.open(path, "rt") as file:
        for line in file:
            said = json.loads(line.partition(" ")[2])
            if "lastUpdateId" in said: snapshot = said
            else: messages.append((said["stream"], said["data"]))
    messages = [(s, d) for s, d in messages if d.get("e") != "depthUpdate" or d["u"] > snapshot["lastUpdateId"]]
    return snapshot, messages


class ReplayServer:
    "Binance's spot market on 127.0.0.1, in a thread; `rate` messages per second once somebody has subscribed."
    def __init__(self, *markets, rate: float = 2000.0, port: int = 0, whole: bool = False):
        self.books, self.messages = {}, []
        for snapshot, messages in markets:
            self.books[messages[0][1]["s"]] = Book(snapshot)
            self.messages += messages
        self.rate, self.port, self.whole = rate, port, whole
        self.at, self.sent, self.sockets = 0, [], {}
        self.skip, self.resend_from, self.resent, self.garbage = set(), None, 0, False
        self.paused = threading.Event()

    # ---- what a test does to the venue
    def send_again(self, last: int) -> None:
        "Whoever subscribes to trades from now on gets those among the `last` messages before now first."
        self.resend_from = max(len(self.sent) - last, 0)

    def drop(self) -> None:
        "Break all connections."
        asyncio.run_coroutine_threadsafe(self._drop(), self.loop).result(10)

    def lose(self, kind: str) -> None:
        "The next message of the kind (depth, trade, bookTicker) happens, but is not sent."
        self.skip.add(kind)

    def happened(self, kind: str) -> list[dict]:
        "What happened in the market so far, in order."
        return [d for s, d in self.sent if s.split("@")[1] == kind]

    @property
    def url(self) -> str:
        "The endpoint."
        return f"http://127.0.0.1:{self.port}"

    # ---- the server
    def __enter__(self):
        self.loop, up = asyncio.new_event_loop(), threading.Event()
        self.thread = threading.Thread(target=self._run, args=(up,), daemon=True)
        self.thread.start()
        assert up.wait(10)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.done.set)
        self.thread.join(10)

    def _run(self, up):
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._serve(up))
        self.loop.close()

    async def _serve(self, up):
        self.done = asyncio.Event()
        app = web.Application()
        app.router.add_get("/api.binance.com/api/v3/exchangeInfo", self._info)
        app.router.add_get("/{host}/{kind:[fd]api}/v1/exchangeInfo", self._nothing)
        app.router.add_get("/api.binance.com/api/v3/depth", self._depth)
        app.router.add_get("/{host}/ws/{n}", self._socket)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]
        market = asyncio.create_task(self._market())
        up.set()
        await self.done.wait()
        market.cancel()
        with suppress(asyncio.CancelledError): await market
        await self._drop()
        await runner.cleanup()

    async def _info(self, _):
        symbols = [{"symbol": s, "status": "TRADING", "baseAsset": s[:-4], "quoteAsset": "USDT", "filters": FILTERS,
                    "isSpotTradingAllowed": True, "permissions": ["SPOT"], "orderTypes": ["LIMIT"]} for s in self.books]
        return web.json_response({"timezone": "UTC", "symbols": symbols})

    async def _nothing(self, _): return web.json_response({"symbols": []})

    async def _depth(self, request):
        limit = 10**6 if self.whole else int(request.query.get("limit", 100))
        return web.json_response(self.books[request.query["symbol"]].snapshot(limit))

    async def _socket(self, request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[socket] = set()
        async for message in socket:
            if message.type != WSMsgType.TEXT: break
            asked = json.loads(message.data)
            await socket.send_json({"result": None, "id": asked["id"]})
            for stream in asked["params"]: await self._subscribe(socket, stream)
        self.sockets.pop(socket, None)
        return socket

    async def _subscribe(self, socket, stream):
        "Trades begin with those that were sent before, from `resend_from` on, as some venues have it."
        again = self.resend_from is not None and stream.endswith("@trade")
        at = self.resend_from if again else len(self.sent)
        while at < len(self.sent):
            (kind, data), at = self.sent[at], at + 1
            if kind == stream:
                self.resent += 1
                await socket.send_json(data)
        self.sockets[socket].add(stream)

    async def _market(self):
        "Let the market go on, a few messages each time."
        step = max(int(self.rate / 100), 1)
        while self.at < len(self.messages):
            await asyncio.sleep(step / self.rate)
            if self.paused.is_set() or not (self.at or any(self.sockets.values())): continue
            for stream, data in self.messages[self.at:self.at + step]: await self._happen(stream, data)
            self.at += step

    async def _happen(self, stream, data):
        kind = stream.split("@")[1]
        if kind == "depth": self.books[data["s"]].apply(data)
        self.sent.append((stream, data))
        if kind in self.skip: return self.skip.discard(kind)
        text = "[1, 2, 3]" if self.garbage else json.dumps(data)
        self.garbage = False
        for socket, streams in list(self.sockets.items()):
            if stream in streams:
                with suppress(ConnectionError): await socket.send_str(text)

    async def _drop(self):
        for socket in list(self.sockets):
            self.sockets.pop(socket, None)
            if (transport := socket._req.transport) is not None: transport.abort()
