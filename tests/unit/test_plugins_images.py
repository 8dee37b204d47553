from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stream_scorer.plugins import InvalidPayload
from stream_scorer.plugins.images import decode_image, greyscale, rgb

FORMATS = ("PNG", "JPEG")
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    return SIGNATURE + b"".join(chunk(name, data) for name, data in chunks)


def chunks_of(payload: bytes) -> list[tuple[bytes, bytes]]:
    chunks = []
    at = len(SIGNATURE)
    while at < len(payload):
        (length,) = struct.unpack_from(">I", payload, at)
        chunks.append((payload[at + 4 : at + 8], payload[at + 8 : at + 8 + length]))
        at += length + 12
    return chunks


def decode(payload: bytes, max_pixels: int = 10_000) -> Image.Image:
    return decode_image(payload, formats=FORMATS, max_pixels=max_pixels)


def grey(image: Image.Image, form: str = "PNG", **options: Any) -> list[list[int]]:
    """What becomes of an image of 2 x 1 pixels."""
    pixels = greyscale(decode(saved(image, form, **options)), 2, 1)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 2)
    values: list[list[int]] = pixels.tolist()
    return values


def two(mode: str, first: Any, second: Any) -> Image.Image:
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), first)
    image.putpixel((1, 0), second)
    return image


def test_greyscale_is_left_as_it_is() -> None:
    assert grey(two("L", 7, 200)) == [[7, 200]]


def test_black_and_white_become_the_extremes() -> None:
    assert grey(two("1", 0, 1)) == [[0, 255]]


def test_colours_become_their_luminance() -> None:
    assert grey(two("RGB", (255, 255, 255), (0, 255, 0))) == [[255, 150]]


def test_sixteen_bits_become_eight() -> None:
    image = Image.fromarray(np.array([[0x0100, 0xFFFF]], np.uint16))
    assert grey(image) == [[1, 255]]


@pytest.mark.parametrize(
    ("mode", "clear", "half"),
    [("LA", (255, 0), (255, 128)), ("RGBA", (255, 255, 255, 0), (255, 255, 255, 128))],
)
def test_what_is_transparent_becomes_black(mode: str, clear: Any, half: Any) -> None:
    assert grey(two(mode, clear, half)) == [[0, 128]]


def test_a_transparent_colour_becomes_black() -> None:
    assert grey(two("L", 90, 200), transparency=200) == [[90, 0]]
    image = two("RGB", (255, 255, 255), (90, 90, 90))
    assert grey(image, transparency=(255, 255, 255)) == [[0, 90]]


def test_palettes_become_their_colours() -> None:
    image = two("P", 0, 1)
    image.putpalette([40, 40, 40, 250, 250, 250])
    assert grey(image) == [[40, 250]]
    assert grey(image, transparency=1) == [[40, 0]]


def test_jpegs_for_print_are_taken() -> None:
    ((black, white),) = grey(two("CMYK", (0, 0, 0, 255), (0, 0, 0, 0)), "JPEG", quality=100)
    assert black < 10
    assert white > 245


def test_other_sizes_are_stretched() -> None:
    image = Image.new("L", (60, 20))
    image.paste(255, (30, 0, 60, 20))
    pixels = greyscale(decode(saved(image)), 4, 4)
    assert pixels.shape == (4, 4)
    assert pixels[:, 0].max() < 30
    assert pixels[:, 3].min() > 225


def colours(image: Image.Image, form: str = "PNG", **options: Any) -> list[list[int]]:
    """What becomes of the two pixels of an image of 2 x 1."""
    pixels = rgb(decode(saved(image, form, **options)), 2, 1)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (1, 2, 3)
    values: list[list[int]] = pixels[0].tolist()
    return values


def image_of(mode: str, *pixels: Any) -> Image.Image:
    image = Image.new(mode, (2, 1))
    for at, pixel in enumerate(pixels):
        image.putpixel((at, 0), pixel)
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (image_of("RGB", (10, 20, 30), (200, 100, 0)), [[10, 20, 30], [200, 100, 0]]),
        (image_of("L", 7, 200), [[7] * 3, [200] * 3]),
        (image_of("1", 0, 1), [[0] * 3, [255] * 3]),
        (image_of("I;16", 256 * 9, 65_535), [[9] * 3, [255] * 3]),
        (image_of("RGBA", (10, 20, 30, 255), (200, 100, 0, 0)), [[10, 20, 30], [0] * 3]),
        (image_of("LA", (7, 255), (200, 0)), [[7] * 3, [0] * 3]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_any_mode_becomes_red_green_and_blue(image: Image.Image, expected: object) -> None:
    assert colours(image) == expected


def test_a_transparent_colour_and_a_palette_become_theirs() -> None:
    clear = image_of("RGB", (10, 20, 30), (200, 100, 0))
    assert colours(clear, transparency=(200, 100, 0)) == [[10, 20, 30], [0] * 3]
    assert colours(clear.quantize(2)) == [[10, 20, 30], [200, 100, 0]]


def test_colours_of_another_size_are_stretched() -> None:
    pixels = rgb(decode(saved(Image.new("RGB", (3, 5), (10, 20, 30)))), 4, 2)
    assert pixels.shape == (2, 4, 3)
    assert {tuple(pixel) for pixel in pixels.reshape(-1, 3).tolist()} == {(10, 20, 30)}


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "PPM", "ICO", "WEBP"])
def test_formats_that_are_not_asked_for_are_refused(form: str) -> None:
    payload = saved(Image.new("L", (16, 16)), form)
    with pytest.raises(InvalidPayload, match=r"^not an image of the formats PNG, JPEG$"):
        decode(payload)


@pytest.mark.parametrize("payload", [b"", b"\x00", b"seven", SIGNATURE, b"\xff\xd8\xff"])
def test_what_is_no_image_is_refused(payload: bytes) -> None:
    with pytest.raises(InvalidPayload, match="not an image"):
        decode(payload)


def noise(mode: str = "L") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (28, 28, 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize("form", FORMATS)
def test_an_image_cut_short_is_damaged(form: str) -> None:
    payload = saved(noise(), form)
    with pytest.raises(InvalidPayload, match="damaged"):
        decode(payload[: len(payload) * 2 // 3])


def test_the_limit_is_of_pixels() -> None:
    image = saved(Image.new("1", (200, 50)))
    assert decode(image, max_pixels=10_000).size == (200, 50)
    with pytest.raises(InvalidPayload, match=r"^the image has 200 x 50 pixels, more than 9999$"):
        decode(image, max_pixels=9_999)


HEADER = struct.pack(">IIBBBBB", 2, 1, 8, 0, 0, 0, 0)
PIXELS = zlib.compress(b"\x00\x07\xc8")


@pytest.mark.parametrize(
    "palette",
    [
        pytest.param([], id="none at all"),
        pytest.param([(b"PLTE", bytes(6)), (b"tRNS", b"\x01\x02" * 200)], id="400 transparencies"),
    ],
)
def test_palettes_that_make_no_sense_are_damage(palette: list[tuple[bytes, bytes]]) -> None:
    header = struct.pack(">IIBBBBB", 2, 1, 8, 3, 0, 0, 0)
    payload = png((b"IHDR", header), *palette, (b"IDAT", PIXELS), (b"IEND", b""))
    with pytest.raises(InvalidPayload, match="damaged"):
        greyscale(decode(payload), 2, 1)
    with pytest.raises(InvalidPayload, match="the image is damaged"):
        rgb(decode(payload), 2, 1)


@pytest.mark.parametrize("broken", [(b"pHYs", b"\x00"), (b"iCCP", b"")])
def test_a_broken_chunk_after_the_pixels_is_damage(broken: tuple[bytes, bytes]) -> None:
    payload = png((b"IHDR", HEADER), (b"IDAT", PIXELS), broken, (b"IEND", b""))
    with pytest.raises(InvalidPayload, match="damaged"):
        decode(payload)


@pytest.mark.filterwarnings("error")
def test_oddities_that_pillow_warns_of_are_read_in_silence() -> None:
    payload = png(
        (b"IHDR", HEADER), (b"acTL", struct.pack(">II", 0, 0)), (b"IDAT", PIXELS), (b"IEND", b"")
    )
    with pytest.warns(UserWarning, match="APNG"):  # Pillow does warn of this one
        Image.open(io.BytesIO(payload))
    assert greyscale(decode(payload), 2, 1).tolist() == [[7, 200]]


CHUNKS = [b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"iCCP", b"zTXt", b"iTXt", b"tEXt"]
CHUNKS += [b"eXIf", b"acTL", b"fcTL", b"fdAT", b"pHYs", b"sRGB", b"cHRM"]
IMAGES = [saved(noise(mode)) for mode in ("1", "L", "LA", "RGB", "RGBA", "P")]
IMAGES.append(saved(noise("P"), transparency=3))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(data=st.data())
def test_damaged_chunks_are_refused_or_read(data: st.DataObject) -> None:
    """Checksums that hold, so that the damage reaches what reads the chunks."""
    chunks = chunks_of(data.draw(st.sampled_from(IMAGES)))
    at = data.draw(st.integers(0, len(chunks) - 1))
    name, body = chunks[at]
    cut = data.draw(st.integers(0, min(len(body), 30)))
    inserted = data.draw(st.binary(max_size=6))
    damaged = body[:cut] + inserted + body[cut + data.draw(st.integers(0, 6)) :]
    damaged_chunk = (data.draw(st.sampled_from([name, name, *CHUNKS])), damaged)
    chunks[at : at + data.draw(st.integers(0, 1))] = [damaged_chunk]
    try:
        image = decode(png(*chunks))
        pixels, coloured = greyscale(image, 28, 28), rgb(image, 28, 28)
    except InvalidPayload:
        return
    assert (pixels.shape, coloured.shape) == ((28, 28), (28, 28, 3))


def bomb(side: int) -> bytes:
    """A PNG of some KB that unpacks to a byte for each of its side x side pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    pixels = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return png((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))


# Memory is measured in a process of its own: here earlier tests have made room already.
MEASURE = """
import sys
from pathlib import Path
from PIL import Image
from stream_scorer.plugins import InvalidPayload
from stream_scorer.plugins.images import decode_image

def peak_memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

payload = Path(sys.argv[1]).read_bytes()
Image.init()
before = peak_memory()
try:
    decode_image(payload, formats=("PNG", "JPEG"), max_pixels=int(sys.argv[2]))
    outcome = "unpacked"
except InvalidPayload:
    outcome = "refused"
sys.stdout.write(f"{outcome} {peak_memory() - before}")
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("side", "max_pixels", "outcome"),
    [
        (8_000, 25_000_000, "refused"),
        (11_000, 25_000_000, "refused"),  # Pillow would warn
        (20_000, 25_000_000, "refused"),  # Pillow would refuse, too
        (8_000, 64_000_000, "unpacked"),  # shows that the measurement would see it
    ],
)
def test_bombs_are_refused_before_they_are_unpacked(
    tmp_path: Path, side: int, max_pixels: int, outcome: str
) -> None:
    payload = bomb(side)
    assert len(payload) < 100_000
    file = tmp_path / "bomb.png"
    file.write_bytes(payload)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(file), str(max_pixels)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    seen, grown = run.stdout.split()
    assert seen == outcome
    if outcome == "refused":
        assert int(grown) < 8_000_000
    else:
        assert int(grown) > 60_000_000
