"""The font has all characters of the shipped instructions, is small, and carries its licence."""
from pathlib import Path

from language_helpers import ROWS
from PIL import ImageFont

FONT = Path(__file__).resolve().parent.parent / "data" / "fonts" / "FlexibleWorldSansKR-Regular.ttf"


def glyph(font, character):
    """Return the size and the bytes of the character's image."""
    mask = font.getmask(character)
    return mask.size, bytes(mask)


def test_the_font_has_hangul_and_latin():
    font = ImageFont.truetype(str(FONT), 16)
    missing = glyph(font, "\ue000")     # private use: no font of ours has it
    needed = sorted(set("".join(row["text"] for row in ROWS)) - {" "})
    images = {character: glyph(font, character) for character in needed + list("뷁쀍힣ㅋ·→—")}
    assert [character for character, image in images.items() if image == missing] == []
    assert len({images[syllable] for syllable in needed if "가" <= syllable <= "힣"}) > 100


def test_the_font_is_small_and_carries_its_licence():
    assert FONT.stat().st_size < 1_800_000
    assert ImageFont.truetype(str(FONT), 16).getname()[0] == "FlexibleWorld Sans KR"
    licence = (FONT.parent / "OFL.txt").read_text(encoding="utf-8")
    assert "SIL OPEN FONT LICENSE" in licence and "Copyright" in licence and "Modified Version" in licence
