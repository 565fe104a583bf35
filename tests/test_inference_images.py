"""Decisions about people's own images: formats, sources, places, and images that are refused."""
import base64
import http.server
import io
import re
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from inference_helpers import WHITE, act, frames, refuses, ring_of
from PIL import Image

import models.image_io
from models.image_io import load_image, resize_for_model
from models.vlm_policy import VLMPolicy
from simulator.particles.actions import Action, ActionType


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of good ones, named by what they are."""
    folder, noise = tmp_path_factory.mktemp("images"), np.random.default_rng(0).integers(256, size=(60, 90, 3))
    image = Image.fromarray(noise.astype(np.uint8))
    clear = Image.new("RGBA", (40, 70), (9, 9, 9, 0))
    clear.paste((200, 30, 30, 255), (0, 0, 20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6                                                # to be turned clockwise
    halves = Image.new("RGB", (64, 32), "black")
    halves.paste("white", (0, 0, 32, 32))                             # on the left: on top, when upright
    halves.save(folder / "turned.jpg", exif=turned)
    image.save(folder / "rgb.png")
    image.resize((900, 500)).save(folder / "large.webp")
    image.resize((1200, 10)).save(folder / "wide.png")
    image.resize((8, 8)).save(folder / "small.bmp")
    image.convert("L").save(folder / "grey.jpg")
    image.convert("1").save(folder / "bits.tiff")
    image.convert("CMYK").save(folder / "cmyk.jpg")
    clear.save(folder / "rgba.png")
    clear.convert("LA").save(folder / "la.png")
    clear.convert("P").save(folder / "palette.gif", transparency=clear.convert("P").getpixel((30, 60)))
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(folder / "deep.png")
    return folder


# --- good images ----------------------------------------------------------------------------------------------
NAMES = ("rgb.png", "large.webp", "wide.png", "small.bmp", "grey.jpg", "bits.tiff", "cmyk.jpg", "rgba.png", "la.png",
         "palette.gif", "deep.png", "turned.jpg")


def test_decides_about_images_of_every_kind(images, saved, capsys, tmp_path):
    code, out, err = act(capsys, tmp_path, "--model", saved, "--image", *[images / name for name in NAMES])
    assert code == 0 and not err
    assert "the model understands: " in out and out.endswith(f"12 images; {tmp_path / 'a.gif'} written\n")
    lines = [line for line in out.splitlines() if re.match(r" *\d+  /", line)]
    assert all(name in line for name, line in zip(NAMES, lines, strict=True))
    assert "turned.jpg, 32x64: " in lines[-1]                        # the size that a person sees
    assert len(list(frames(tmp_path / "a.gif"))) == 12


@pytest.mark.parametrize("name", ["rgba.png", "la.png", "palette.gif"])
def test_what_is_clear_is_white(name, images):
    image = load_image(str(images / name))
    assert image.mode == "RGB" and image.getpixel((35, 60)) == WHITE and image.getpixel((5, 5)) != WHITE


def test_images_are_upright_and_deep_ones_keep_their_greys(images):
    turned = load_image(str(images / "turned.jpg"))
    assert turned.size == (32, 64) and turned.getpixel((16, 5))[0] > 200 and turned.getpixel((16, 60))[0] < 50
    deep = np.asarray(load_image(str(images / "deep.png")))
    assert len(np.unique(deep)) == 256


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_sees_them_as_they_are_prepared(name, images, policy):
    """qwen_vl_utils brings an image to a size that the backbone leaves alone."""
    factor, low, high = policy.backbone.resize_limits()
    assert (factor, low, high) == (16, 32 * 32, 256 * 256)
    seen = resize_for_model(load_image(str(images / name)), name, policy.backbone)
    assert not seen.width % factor and not seen.height % factor and low <= seen.width * seen.height <= high
    _, (h, w) = policy.backbone.pixels(torch.from_numpy(np.array(seen))[None])
    assert (w * 8, h * 8) == seen.size


@pytest.mark.parametrize("size", [(640, 480), (30, 90), (512, 10)])
@pytest.mark.parametrize("place", [(0, 0), (16, 48), (64, 64)])
def test_the_ring_is_where_the_action_points_to(size, place, saved, capsys, tmp_path, monkeypatch):
    Image.new("RGB", size, (90, 120, 90)).save(tmp_path / "p.png")
    action = torch.from_numpy(Action(ActionType.APPLY_HEAT, x=place[0], y=place[1], value=1).to_vector())[None]
    honest = VLMPolicy.sample_action
    monkeypatch.setattr(VLMPolicy, "sample_action", lambda self, *a, **b: (action, *honest(self, *a, **b)[1:]))
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--image", tmp_path / "p.png")
    pixel = tuple(min(place[i] * size[i] // 64, size[i] - 1) for i in (0, 1))
    assert code == 0 and f": heat at {place}, strength 1.0, radius 1: pixel {pixel}\n" in out
    [frame] = frames(tmp_path / "a.gif")
    scale = 512 / max(size)
    width, height = (round(side * scale) for side in size)
    left, top = (512 - width) / 2, 32 + (max(height, 48) - height) / 2
    expected = left + place[0] / 64 * width, top + place[1] / 64 * height
    if 0 < place[0] < 64:                                            # at the edge it is cut off
        assert np.abs(ring_of(frame) - expected).max() < 3
    else:
        assert ring_of(frame) is not None


def test_no_ring_where_the_action_has_no_place(saved, images, capsys, tmp_path, monkeypatch):
    action, honest = torch.from_numpy(Action(ActionType.STEP).to_vector())[None], VLMPolicy.sample_action
    monkeypatch.setattr(VLMPolicy, "sample_action", lambda self, *a, **b: (action, *honest(self, *a, **b)[1:]))
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--image", images / "deep.png")
    assert code == 0 and "64x64: let time pass\n" in out
    assert all(ring_of(frame) is None for frame in frames(tmp_path / "a.gif"))


# --- where images are -----------------------------------------------------------------------------------------
@pytest.fixture
def server(images):
    """The address of a server of the folder; /never does not answer, /drops answers a byte at a time."""
    done = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a):
            super().__init__(*a, directory=str(images))

        def do_GET(self):
            if self.path == "/never":
                done.wait(20)
            elif self.path == "/drops":
                self.send_response(200)
                self.end_headers()
                while not done.wait(0.05):
                    self.wfile.write(b"\x89")
            else:
                super().do_GET()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as it:
        it.daemon_threads, it.block_on_close = True, False
        threading.Thread(target=it.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{it.server_address[1]}"
        done.set()
        it.shutdown()


def test_all_sources_give_the_same_image(images, server, tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes((images / "rgb.png").read_bytes())
    encoded = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    seen = [np.asarray(load_image(source)) for source in (str(path), path.as_uri(), f"{server}/rgb.png", encoded)]
    assert all(np.array_equal(one, seen[0]) for one in seen)


def test_an_image_from_a_server(server, saved, capsys, tmp_path):
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--image", f"{server}/rgb.png")
    assert code == 0 and f"{server}/rgb.png, 90x60: " in out


@pytest.mark.parametrize("path, says", [("none.png", "the server answers 404"), ("never", "nothing came within 0.5 s"),
                                        ("drops", "nothing came within 0.5 s"), ("", "no image, or a damaged one")])
def test_a_server_that_does_not_give_an_image(path, says, server, saved, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(models.image_io, "TIMEOUT_S", 0.5)
    began = time.perf_counter()
    err = refuses(capsys, tmp_path, "--model", saved, "--image", f"{server}/{path}")
    assert says in err and f"{server}/{path}" in err and time.perf_counter() - began < 5


@pytest.mark.parametrize("url, says", [
    ("http://127.0.0.1:1/a.png", "cannot be reached"), ("https://no.such.host.invalid/a.png", "cannot be reached"),
    ("http://", "cannot download"), ("http://[/a.png", "cannot download"),
    ("http://127.0.0.1:99999/a", "cannot download")])
def test_an_address_that_leads_nowhere(url, says, saved, capsys, tmp_path):
    began = time.perf_counter()
    err = refuses(capsys, tmp_path, "--model", saved, "--image", url)
    assert says in err and url in err and time.perf_counter() - began < 12


# --- bad images -----------------------------------------------------------------------------------------------
def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


BOMB = png(Image.new("1", (8, 8))).replace(b"\0\0\0\x08\0\0\0\x08", b"\0\0\x4e\x20\0\0\x4e\x20", 1)   # 20,000 x 20,000
BOMB = BOMB[:29] + zlib.crc32(BOMB[12:29]).to_bytes(4, "big") + BOMB[33:]
BAD = {
    "missing.png": (None, "there is no file"), "folder.png": ("folder", "is a folder: name an image"),
    "text.png": (b"not a picture\n", "give one as PNG, JPEG"), "empty.png": (b"", "give one as PNG, JPEG"),
    "page.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "give one as PNG, JPEG"),
    "half.png": (lambda whole: whole[:len(whole) // 2], "is damaged or cut short"),
    "flipped.png": (lambda whole: whole[:200] + b"\0" * 50 + whole[250:], "is damaged or cut short"),
    "dot.png": (png(Image.new("RGB", (1, 1))), "is 1x1, too small.*8x8 pixels at least"),
    "line.png": (png(Image.new("RGB", (3, 60))), "is 3x60, too small"),
    "strip.png": (png(Image.new("RGB", (2100, 10))), "is 2100x10.*over 200 times as long as wide: crop it"),
    "pole.png": (png(Image.new("RGB", (10, 2100))), "is 10x2100.*over 200 times"),
    "bomb.png": (BOMB, "more than 89 million pixels: make it smaller"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused(name, images, saved, capsys, tmp_path):
    """It is named, and the good one beside it does not help."""
    content, says = BAD[name]
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content((images / "rgb.png").read_bytes()) if callable(content) else content)
    err = refuses(capsys, tmp_path, "--model", saved, "--image", images / "rgb.png", path)
    assert name in err and "rgb.png" not in err and re.search(says, err)


@pytest.mark.parametrize("words, says", [
    (["--image"], "--image names no image"), (["--image", ""], "there is no file ''"),
    (["--image", "x" * 5000], "no image"), (["--image", "a\0b"], "there is no file"),
    (["--image", "data:image/png;base64,@@@@"], "data:image/png;base64 is no image"),
    (["--image", "/dev/zero"], "there is no file"), (["--image", "b\udcff.png"], r"there is no file 'b\\")])
def test_what_names_no_image(words, says, saved, capsys, tmp_path):
    assert re.search(says, refuses(capsys, tmp_path, "--model", saved, *words))
