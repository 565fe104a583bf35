"""Episodes as GIFs, decisions about people's own images, and what is said about wrong input."""
import base64
import http.server
import io
import json
import re
import subprocess
import sys
import threading
import time
import unicodedata
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import config
import inference
import models.image_io
from models import vlm_policy
from models.image_io import load_image, resize_for_model
from models.vlm_policy import VLMPolicy
from scripts import cli, evaluate, instructions
from simulator import recording
from simulator.particles.actions import Action, ActionType
from simulator.particles.goals import parse
from simulator.particles.splits import FAMILY

RED, WHITE = (220, 20, 60), (255, 255, 255)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of good ones, named by what they are."""
    folder, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0).integers(256, size=(60, 90, 3))
    picture = Image.fromarray(noise.astype(np.uint8))
    clear = Image.new("RGBA", (40, 70), (9, 9, 9, 0))
    clear.paste((200, 30, 30, 255), (0, 0, 20, 20))
    turned = Image.Exif()
    turned[0x0112] = 6                                                # to be turned clockwise
    halves = Image.new("RGB", (64, 32), "black")
    halves.paste("white", (0, 0, 32, 32))                             # on the left: on top, when upright
    halves.save(folder / "turned.jpg", exif=turned)
    picture.save(folder / "rgb.png")
    picture.resize((900, 500)).save(folder / "large.webp")
    picture.resize((1200, 10)).save(folder / "wide.png")
    picture.resize((8, 8)).save(folder / "small.bmp")
    picture.convert("L").save(folder / "grey.jpg")
    picture.convert("1").save(folder / "bits.tiff")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    clear.save(folder / "rgba.png")
    clear.convert("LA").save(folder / "la.png")
    clear.convert("P").save(folder / "palette.gif", transparency=clear.convert("P").getpixel((30, 60)))
    Image.fromarray(np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)).save(folder / "deep.png")
    return folder


def act(capsys, folder, *words, goal="go left"):
    """-> exit code, stdout, stderr of the program; its GIF would be folder/a.gif."""
    capsys.readouterr()
    code = inference.main(["--goal", goal, "--output", str(folder / "a.gif"), *map(str, words)])
    return code, *capsys.readouterr()


def refuses(capsys, folder, *words):
    """What it says in one line, nothing written."""
    code, out, err = act(capsys, folder, *words)
    assert code == 2 and not out and err.startswith("error: ") and err.count("\n") == 1
    assert not [path for path in folder.iterdir() if path.name.startswith("a.gif")]
    return err


def frames(path):
    with Image.open(path) as gif:
        for i in range(gif.n_frames):
            gif.seek(i)
            yield np.asarray(gif.convert("RGB"))


def ring_of(frame):
    """The middle of what is drawn in red."""
    there = np.abs(frame.astype(int) - RED).sum(-1) < 30
    return np.argwhere(there).mean(0)[::-1] if there.any() else None


# --- episodes ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [(32, 32), (64, 64), (40, 96), (128, 128)])
def test_records_episodes_in_a_world_of_any_size(size, policy, tmp_path):
    settings = config.load(["vlm_tiny", "env.max_steps=3", f"world.width={size[0]}", f"world.height={size[1]}"])
    asked = [("push(direction=left)", 7), ("cluster()", 8), ("heat() THEN spread()", 9)]
    recording.save_video(recording.record_episodes(policy, settings, asked), tmp_path / "a.gif")
    drawn = list(frames(tmp_path / "a.gif"))
    assert len(drawn) == 4 + 4 + 7                              # the start and three steps for each goal
    assert len({frame.shape for frame in drawn}) == 1 and 512 <= drawn[0].shape[1] <= 520
    recording.save_video(recording.record_episodes(policy, settings, asked), tmp_path / "b.gif")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_play_says_what_happens(policy):
    env = FAMILY.make_single(config.load(["vlm_tiny", "env.max_steps=3"]))
    obs, _ = env.reset(seed=1, options={"goal": "cluster()"})
    steps = list(recording.run_episode(env, policy, obs))
    assert [step.outcome for step in steps] == ["", "", "not reached in 3 steps"]
    assert all(step.decision_seconds > 0 and step.note == "" and step.action_text for step in steps)


def test_long_sentences_are_wrapped_and_nothing_is_lost():
    instruction = "입자들을 모두 왼쪽 위 구석으로 옮긴 다음에 " * 12
    font, lines = recording.wrap(instruction.strip(), 18, 500)
    assert " ".join(lines) == instruction.strip() and max(map(font.getlength, lines)) <= 500 and font.size == 12
    font, lines = recording.wrap("가" * 500, 18, 500)                # no space to break at
    assert "".join(lines) == "가" * 500 and max(map(font.getlength, lines)) <= 500
    assert recording.wrap("go left", 18, 500)[1] == ["go left"]


# --- good pictures ----------------------------------------------------------------------------------------------
NAMES = ("rgb.png", "large.webp", "wide.png", "small.bmp", "grey.jpg", "bits.tiff", "cmyk.jpg", "rgba.png", "la.png",
         "palette.gif", "deep.png", "turned.jpg")


def test_decides_about_pictures_of_every_kind(pictures, saved, capsys, tmp_path):
    code, out, err = act(capsys, tmp_path, "--model", saved, "--image", *[pictures / name for name in NAMES])
    assert code == 0 and not err
    assert "the model understands: " in out and out.endswith(f"12 images; {tmp_path / 'a.gif'} written\n")
    lines = [line for line in out.splitlines() if re.match(r" *\d+  /", line)]
    assert all(name in line for name, line in zip(NAMES, lines, strict=True))
    assert "turned.jpg, 32x64: " in lines[-1]                        # the size that a person sees
    assert len(list(frames(tmp_path / "a.gif"))) == 12


@pytest.mark.parametrize("name", ["rgba.png", "la.png", "palette.gif"])
def test_what_is_clear_is_white(name, pictures):
    picture = load_image(str(pictures / name))
    assert picture.mode == "RGB" and picture.getpixel((35, 60)) == WHITE and picture.getpixel((5, 5)) != WHITE


def test_pictures_are_upright_and_deep_ones_keep_their_greys(pictures):
    turned = load_image(str(pictures / "turned.jpg"))
    assert turned.size == (32, 64) and turned.getpixel((16, 5))[0] > 200 and turned.getpixel((16, 60))[0] < 50
    deep = np.asarray(load_image(str(pictures / "deep.png")))
    assert len(np.unique(deep)) == 256


@pytest.mark.parametrize("name", NAMES)
def test_the_backbone_sees_them_as_they_are_prepared(name, pictures, policy):
    """qwen_vl_utils brings a picture to a size that the backbone leaves alone."""
    factor, low, high = policy.backbone.resize_limits()
    assert (factor, low, high) == (16, 32 * 32, 256 * 256)
    seen = resize_for_model(load_image(str(pictures / name)), name, policy.backbone)
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


def test_no_ring_where_the_action_has_no_place(saved, pictures, capsys, tmp_path, monkeypatch):
    action, honest = torch.from_numpy(Action(ActionType.STEP).to_vector())[None], VLMPolicy.sample_action
    monkeypatch.setattr(VLMPolicy, "sample_action", lambda self, *a, **b: (action, *honest(self, *a, **b)[1:]))
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--image", pictures / "deep.png")
    assert code == 0 and "64x64: let time pass\n" in out
    assert all(ring_of(frame) is None for frame in frames(tmp_path / "a.gif"))


# --- where pictures are -----------------------------------------------------------------------------------------
@pytest.fixture
def server(pictures):
    """The address of a server of the folder; /never does not answer, /drops answers a byte at a time."""
    done = threading.Event()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a):
            super().__init__(*a, directory=str(pictures))

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


def test_all_sources_give_the_same_picture(pictures, server, tmp_path):
    path = tmp_path / "a b.png"
    path.write_bytes((pictures / "rgb.png").read_bytes())
    encoded = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    seen = [np.asarray(load_image(source)) for source in (str(path), path.as_uri(), f"{server}/rgb.png", encoded)]
    assert all(np.array_equal(one, seen[0]) for one in seen)


def test_a_picture_from_a_server(server, saved, capsys, tmp_path):
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--image", f"{server}/rgb.png")
    assert code == 0 and f"{server}/rgb.png, 90x60: " in out


@pytest.mark.parametrize("path, says", [("none.png", "the server answers 404"), ("never", "nothing came within 0.5 s"),
                                        ("drops", "nothing came within 0.5 s"), ("", "no image, or a damaged one")])
def test_a_server_that_does_not_give_a_picture(path, says, server, saved, capsys, tmp_path, monkeypatch):
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


# --- bad pictures -----------------------------------------------------------------------------------------------
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
def test_a_bad_picture_is_refused(name, pictures, saved, capsys, tmp_path):
    """It is named, and the good one beside it does not help."""
    content, says = BAD[name]
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content((pictures / "rgb.png").read_bytes()) if callable(content) else content)
    err = refuses(capsys, tmp_path, "--model", saved, "--image", pictures / "rgb.png", path)
    assert name in err and "rgb.png" not in err and re.search(says, err)


@pytest.mark.parametrize("words, says", [
    (["--image"], "--image names no image"), (["--image", ""], "there is no file ''"),
    (["--image", "x" * 5000], "no image"), (["--image", "a\0b"], "there is no file"),
    (["--image", "data:image/png;base64,@@@@"], "data:image/png;base64 is no image"),
    (["--image", "/dev/zero"], "there is no file"), (["--image", "b\udcff.png"], r"there is no file 'b\\")])
def test_what_names_no_picture(words, says, saved, capsys, tmp_path):
    assert re.search(says, refuses(capsys, tmp_path, "--model", saved, *words))


# --- which model ------------------------------------------------------------------------------------------------
def programs(tmp_path):
    return ((inference.main, ["--goal", "go left", "--steps", "1", "--output", str(tmp_path / "a.gif")]),
            (evaluate.main, ["--episodes", "1"]))


def test_a_model_is_a_file_a_folder_or_a_name(saved, capsys, tmp_path, monkeypatch):
    VLMPolicy.from_checkpoint(saved).save_pretrained(tmp_path / "agent")
    import huggingface_hub
    monkeypatch.setattr(vlm_policy, "resolve_hub_kwargs", lambda name, agent=False: {})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name: {"someone/agent": tmp_path / "agent"}[name])
    for model in (saved, tmp_path / "agent", "someone/agent"):
        for main, words in programs(tmp_path):
            assert main([*words, "--model", str(model)]) == 0, model
    assert f"model {saved}, goal" in capsys.readouterr().out


@pytest.mark.parametrize("name, says", [("someone/no-agent", "no agent at 'someone/no-agent'.*or a hub name"),
                                        ("checkpoints/none.pt", "no checkpoint at checkpoints/none.pt")])
def test_a_model_that_is_not_there(name, says, capsys, tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    for main, words in programs(tmp_path):
        assert main([*words, "--model", name]) == 2
        err = capsys.readouterr().err
        assert re.search(says, err) and err.count("\n") == 1


def test_a_base_model_that_has_moved(make_policy, model_folder, capsys, tmp_path):
    policy = make_policy(lora={"r": 4, "alpha": 8, "dropout": 0.05, "targets": ["q_proj"]}, own_base=False)
    policy.backbone.name = str(tmp_path / "gone")
    policy.save(tmp_path / "p.pt", {"config": config.load(["vlm_tiny", "env.max_steps=3"]).to_dict()})
    for main, words in programs(tmp_path):
        assert main([*words, "--model", str(tmp_path / "p.pt")]) == 2
        assert f"needs its base model '{tmp_path / 'gone'}'" in capsys.readouterr().err
        assert main([*words, "--model", str(tmp_path / "p.pt"), "--base-model", str(model_folder)]) == 0


# --- frames and videos ------------------------------------------------------------------------------------------
def test_frames_are_legible_and_compose_their_text():
    image = np.zeros((84, 84, 3), np.uint8)
    frame = np.asarray(recording.draw_frame(image, "왼쪽으로", "1: left"))
    assert (np.abs(frame.astype(int)).sum(-1) == 0).sum() >= 256 * 256
    decomposed = recording.draw_frame(image, unicodedata.normalize("NFD", "왼쪽으로"), "1: left")
    assert np.array_equal(frame, np.asarray(decomposed))


@pytest.mark.parametrize("goal, xy", [
    ("move_to(region=top_left)", (0.22 + 0.1, 0.22)), ("move_to(id=0, x>48)", (0.75, 0.5)),
    ("push(direction=right)", (0.6, 0.5)), ("cluster() THEN move_to(region=center)", (0.5 + 0.06, 0.5))])
def test_the_target_of_a_goal_is_outlined(goal, xy):
    from simulator.particles.overlay import COLOR
    black, draw = np.zeros((512, 512, 3), np.uint8), recording.draw_frame
    frame = np.asarray(draw(black, "go", "1", target=goal, size=(64, 64)))
    x, y = round(xy[0] * 512), 32 + round(xy[1] * 512)
    assert (np.abs(frame[y - 3:y + 4, x - 3:x + 4].astype(int) - COLOR).sum(-1) == 0).any()
    plain = np.asarray(draw(black, "go", "1"))
    assert not (np.abs(plain.astype(int) - COLOR).sum(-1) == 0).any()
    assert np.array_equal(plain, np.asarray(draw(black, "go", "1", target="lift_cube")))      # of another env


def test_the_place_of_an_action_is_marked_in_an_episode(policy, monkeypatch):
    env = FAMILY.make_single(config.load(["vlm_tiny", "env.max_steps=1"]))
    obs, _ = env.reset(seed=1, options={"goal": "cluster()"})
    action = torch.from_numpy(Action(ActionType.APPLY_HEAT, x=16, y=48, value=1).to_vector())[None]
    monkeypatch.setattr(policy, "sample_action", lambda *_, **__: (action, None, None), raising=False)
    [step] = recording.run_episode(env, policy, obs)
    ring = ring_of(np.asarray(step.frame)[:540])        # the line below is red too where the goal is missed
    assert np.abs(ring - (16 * 8, 32 + 48 * 8)).max() < 3 and step.outcome == "not reached in 1 steps"


def test_notes_are_words(policy, monkeypatch):
    env = FAMILY.make_single(config.load(["vlm_tiny", "env.max_steps=1"]))
    obs, _ = env.reset(seed=1, options={"goal": "cluster()"})
    vector = Action(ActionType.SET_PROPERTY, x=0, y=0, value=1).to_vector()
    monkeypatch.setattr(policy, "sample_action", lambda *_, **__: (torch.from_numpy(vector)[None], None, None))
    [step] = recording.run_episode(env, policy, obs)
    assert step.note == "no particle there"


def test_an_episode_as_mp4(saved, capsys, tmp_path):
    import av
    path = tmp_path / "a.mp4"
    assert inference.main(["--goal", "go left", "--model", str(saved), "--output", str(path)]) == 0
    with av.open(str(path)) as video:
        assert 12 < sum(1 for _ in video.decode(video=0)) < 20      # four frames, the last one for 1.5 s


def test_a_full_disk_does_not_cost_the_result(saved, capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(inference, "save_video", full)
    code, out, err = act(capsys, tmp_path, "--model", saved)
    assert code == 2 and "reached in " in out and "No space left on device" in err


# --- instructions -----------------------------------------------------------------------------------------------
@pytest.fixture
def model_reads(monkeypatch):
    """model_reads(goal, confidence): what the model reads in any instruction."""
    def set_reading(goal, confidence=0.9):
        reading = instructions.Reading(["1 left"], goal and parse(goal), confidence)
        monkeypatch.setattr(instructions, "read_instruction", lambda *_: reading)
    return set_reading


@pytest.mark.parametrize("goal, reads, confidence, says", [
    ("make it winter in there", None, 0.9, "the model reads 1 left"),
    ("make it winter in there", "cool()", 0.3, r"the model reads cool\(\) \(confidence 0.30\)"),
    ("order a pizza", "heat()", 0.95, "knows no similar instruction"),
    ("asdf qwerty zxcv", "cool()", 0.95, "knows no similar instruction"),
    ("heat the red one", "heat()", 0.95, "acts on all particles, so it cannot be asked of 'red' alone"),
    ("빨간 입자를 데워 줘", "heat()", 0.95, "cannot be asked of '빨간' alone")])
def test_what_is_not_understood_is_refused(goal, reads, confidence, says, model_reads, saved, capsys, tmp_path):
    model_reads(reads, confidence)
    capsys.readouterr()
    assert inference.main(["--goal", goal, "--model", str(saved), "--output", str(tmp_path / "a.gif")]) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and not list(tmp_path.iterdir())
    assert re.search(says, err) and re.search(r'try "[^"]+" \([a-z_]+\(.*\)\), ".*--force', err)
    code, out, _ = act(capsys, tmp_path, "--model", saved, "--force", goal=goal)
    assert code == 0 and "not scored" in out


@pytest.mark.parametrize("reason", ["ambiguous", "negation"])
def test_what_the_rules_refuse_is_refused(reason, model_reads, saved, capsys, tmp_path, monkeypatch):
    from simulator.particles import parser
    monkeypatch.setattr(parser, "parse_instruction", lambda _: (None, reason))
    model_reads("push(direction=left)", 1.0)
    code, out, err = act(capsys, tmp_path, "--model", saved, goal="don't move left")
    assert code == 2 and not out and "is not understood (" in err and '"move left" (push(direction=left))' in err


def test_a_negation_is_refused(saved, capsys, tmp_path):
    assert "is not understood" in act(capsys, tmp_path, "--model", saved, goal="don't move left")[2]


def test_what_only_the_model_understands_is_scored_by_its_reading(model_reads, saved, capsys, tmp_path):
    model_reads("cool()")
    code, out, _ = act(capsys, tmp_path, "--model", saved, goal="make it winter in there")
    assert code == 0 and "\"make it winter in there\", scored as cool() (as the model understood it)" in out
    assert re.search("reached in 3 steps", out)


def test_two_readings_are_both_said(model_reads, saved, capsys, tmp_path):
    model_reads("push(direction=up)")
    _, out, _ = act(capsys, tmp_path, "--model", saved)
    assert "scored as push(direction=left) (as the rules understand it, the model differs)" in out
    assert "the model understands: push(direction=up) (confidence 0.90)" in out
    model_reads("push(direction=left)")
    _, out, _ = act(capsys, tmp_path, "--model", saved)
    assert "scored as push(direction=left)\n" in out


def test_confidence_is_the_product_over_the_slots(policy):
    env = FAMILY.make_single(config.load(["vlm_tiny"]))
    obs, _ = env.reset(seed=0)
    reading = instructions.read_instruction(policy, obs["image"], "go left")
    p = torch.sigmoid(policy([obs["image"]], ["go left"]).slot_logits[0].detach())
    expected = torch.maximum(p, 1 - p).prod().item() if reading.slots else 0
    assert reading.confidence == pytest.approx(expected, abs=1e-5)


# --- arguments --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("words, says", [
    (["--steps", "0"], "--steps is 0: give a whole number from 1 up"),
    (["--seed", "-1"], "--seed is -1: give a whole number from 0"),
    (["--model", "nofile.pt"], "no checkpoint at nofile.pt"), (["--goal", " "], "--goal is empty"),
    (["--output", "nowhere/a.gif"], "cannot write --output nowhere/a.gif"),
    (["--output", "a.avi"], "end in .gif or .mp4")])
def test_wrong_arguments_are_refused(words, says, capsys, tmp_path):
    assert says in refuses(capsys, tmp_path, *words)


@pytest.mark.parametrize("words", [
    ["--deterministic", "--sample"], ["--greedy", "--sample"], ["--seed", "x"], ["--no"]])
def test_arguments_that_do_not_parse_get_one_line(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        inference.parse_args(["--goal", "go left", *words])
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_missing_checkpoint_is_refused_before_torch_is_imported():
    code = ("import sys, inference; code = inference.main(['--goal', 'x', '--model', 'no.pt']); "
            "print(code, 'torch' in sys.modules)")
    root = Path(__file__).resolve().parent.parent
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert result.stdout == "2 False\n" and result.stderr.startswith("error: no checkpoint at no.pt")


def test_a_path_that_cannot_be_opened_is_refused(tmp_path):
    reason = cli.check_output_path(tmp_path / ("x" * 260 + ".gif"))
    assert reason.startswith("cannot write --output") and not list(tmp_path.iterdir())


# --- evaluate.py ------------------------------------------------------------------------------------------------
def test_splits_by_all_their_names():
    from simulator.particles.splits import SPLITS
    args = evaluate.parse_args(["--split", "swap", "chain", "--split", "held_out", "chain"])
    assert evaluate.resolve_splits(args.split, SPLITS, ["seen"]) == [
        "instruction_swap", "long_horizon", "held_out_en", "held_out_ko"]
    assert evaluate.resolve_splits(["all"], SPLITS, ["seen"]) == ["seen"]
    with pytest.raises(config.UserError, match="unknown split 'chains': choose from held_out, swap, chain, all, seen"):
        evaluate.resolve_splits(["chains"], SPLITS, [])


@pytest.mark.parametrize("words, says", [
    (["--episodes", "0"], "--episodes is 0"), (["--seed", "-1"], "--seed is -1"),
    (["--env-preset", "vlm_tiny", "--split", "seen"], "--env-preset measures no model"),
    (["--json", "nowhere/a.json"], "cannot write --json"), (["--model", "no.pt"], "no checkpoint at no.pt")])
def test_evaluate_refuses_in_one_line(words, says, capsys):
    assert evaluate.main(words) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1


def test_baselines_of_an_env(capsys, tmp_path):
    path = tmp_path / "a.json"
    assert evaluate.main(["--env-preset", "vlm_tiny", "env.max_steps=2", "--episodes", "2", "--json", str(path)]) == 0
    assert json.loads(path.read_text())["env_preset"] == ["vlm_tiny", "env.max_steps=2"]
    assert "expert" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        evaluate.main(["--help"])
    assert "simulator/particles/splits.py" in capsys.readouterr().out
