"""The gallery's slider in headless Chromium: by mouse, by touch, by keyboard."""

import asyncio
import base64
import io
import json
import shutil
import subprocess
from contextlib import asynccontextmanager

import pytest
from PIL import Image

from experiments.benchmark import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"ArrowLeft": 37, "ArrowRight": 39}
CUT = "document.querySelector('.compare').style.getPropertyValue('--cut')"
DRAGS = 8


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    pictures = []
    for colour in ("navy", "gold"):
        Image.new("RGB", (320, 240), colour).save(file := io.BytesIO(), "WEBP")
        pictures.append("data:image/webp;base64," + base64.b64encode(file.getvalue()).decode())
    steps = [{"tool": tool, "picture": at, "metrics": {"PSNR": "20.00"}} for at, tool in enumerate(["", "tv.denoise"])]
    trajectories = [{"policy": name, "steps": [*steps, *steps[2 - more :]], "error": ""} for name, more in (("other", 1), ("mine", 0))]
    image = {"name": "noise: a", "clean": 1, "trajectories": trajectories}
    told = page.page("a report", "", {"Gallery": page.GALLERY}, [], {"pictures": pictures, "images": [image], "policy": "mine"})
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(told)
    return path


class Tab:
    """A page of the browser, spoken to by the DevTools protocol."""

    def __init__(self, socket):
        self.socket, self.number, self.events = socket, 0, []

    async def call(self, method, **parameters):
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": parameters})
        while True:
            told = json.loads((await self.socket.receive()).data)
            if told.get("id") == self.number:
                assert "error" not in told, told
                return told["result"]
            self.events.append(told)

    async def value(self, expression):
        return (await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True))["result"].get("value")


@asynccontextmanager
async def opened(path, folder, width, mobile):
    import aiohttp

    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    process = subprocess.Popen([BROWSER, *options, "about:blank"], stderr=subprocess.PIPE, text=True)
    try:
        # it says where it listens, and nothing more is waited for
        place = next(line.split()[-1] for line in process.stderr if line.startswith("DevTools listening on"))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{place.split('/')[2]}/json") as told:
                address = next(tab["webSocketDebuggerUrl"] for tab in await told.json(content_type=None) if tab["type"] == "page")
            async with session.ws_connect(address, max_msg_size=0) as socket:
                tab = Tab(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await tab.call(f"{domain}.enable")
                await tab.call("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=mobile)
                await tab.call("Emulation.setTouchEmulationEnabled", enabled=mobile)
                await tab.call("Page.navigate", url=f"file://{path}")
                await tab.value(
                    "new Promise(done => { const look = () => { const all = [...document.querySelectorAll('.compare img')];"
                    " all.length === 2 && all.every(each => each.complete && each.naturalWidth) && document.readyState === 'complete'"
                    " ? requestAnimationFrame(() => requestAnimationFrame(done)) : setTimeout(look, 20); }; look(); })"
                )
                yield tab
                bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
                assert not [event for event in tab.events if event["method"] in bad]
    finally:
        process.kill()
        process.wait()


async def compared(tab):
    """Where the pictures are: left, top, width, height."""
    await tab.value("document.querySelector('.compare').scrollIntoView({block: 'center', behavior: 'instant'})")
    box = "(({x, y, width, height}) => [x, y, width, height])(document.querySelector('.compare').getBoundingClientRect())"
    return await tab.value(box)


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
@pytest.mark.parametrize("mobile", [True, False], ids=["touch", "mouse"])
def test_the_slider_follows_every_drag(gallery, tmp_path, mobile):
    async def drive():
        async with opened(gallery, tmp_path, 390 if mobile else 1440, mobile) as tab:
            left, top, width, height = await compared(tab)
            assert await tab.value("document.documentElement.scrollWidth") <= (390 if mobile else 1440)
            for number in range(DRAGS):
                start, end = 0.2 + 0.05 * number, 0.8 - 0.05 * number
                # a finger does not move along a line
                way = [(left + width * (start + (end - start) * at / 4), top + height * (0.5 + 0.02 * (at % 2))) for at in range(5)]
                for at, (x, y) in enumerate(way):
                    if mobile:
                        kind = "touchMove" if at else "touchStart"
                        await tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
                    else:
                        kind = "mouseMoved" if at else "mousePressed"
                        await tab.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
                if mobile:
                    await tab.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
                else:
                    await tab.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)
                assert float((await tab.value(CUT)).rstrip("%")) == pytest.approx(100 * end, abs=1), f"drag {number}"

    asyncio.run(asyncio.wait_for(drive(), 120))


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_keyboard_moves_the_slider_and_goes_through_the_steps(gallery, tmp_path):
    async def drive():
        async with opened(gallery, tmp_path, 1440, False) as tab:

            async def press(key):
                for kind in ("keyDown", "keyUp"):
                    await tab.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=KEYS[key])

            await compared(tab)
            said = "document.querySelector('[data-part=said]').textContent"
            assert await tab.value(said) == "mine, step 1 of 1: tv.denoise"
            await press("ArrowLeft")
            assert await tab.value(said) == "mine, step 0 of 1: degraded"
            await tab.value("document.querySelector('.slider').focus()")
            await press("ArrowRight")
            assert await tab.value(CUT) == "50.5%" and await tab.value(said) == "mine, step 0 of 1: degraded"

    asyncio.run(asyncio.wait_for(drive(), 120))
