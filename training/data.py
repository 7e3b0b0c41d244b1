"""The data of the bundled checkpoint: glyphs of Noto Color Emoji, their English CLDR names as captions, and the tokenizer.

Needs the Debian packages fonts-noto-color-emoji, unicode-cldr-core and libraqm0, and `emoji` from PyPI. Everything here is deterministic.
"""

from __future__ import annotations
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from functools import cache
from pathlib import Path
import emoji
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

__all__ = [
    "FRAMES", "HELD_OUT", "SIZE", "Glyph", "caption_pool", "compose", "cut_out", "delft", "glyphs", "moderate", "names", "other_glyphs",
    "placement", "render", "save_tokenizer", "turning",
]  # fmt: skip

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
CLDR = Path("/usr/share/unicode/cldr/common")
SIZE = 64  # pixels
SQUARE = 140  # and those that a glyph is laid on before it is made smaller
FRAMES = 8  # of a video
LENGTH = 77  # tokens
VOCABULARY = 2048
TONES = ("light", "medium-light", "medium", "medium-dark", "dark")

CHOSEN = """
😀 😂 😇 😈 😉 😍 😎 😘 😜 😡 😢 😭 😮 😱 😴 😷 🙃 🤑 🤓 🤔 🤗 🤠 🤡 🤢 🤣 🤩 🤯 🥰 🥳 🥵 🥶 🥺 🧐
🙈 👻 👽 👾 🤖 💀 💩 🎃 🎅 👀 👄 🧠
❤️ 🧡 💛 💚 💙 💜 🖤 💔 💕 💯 💥 🔥 ✨ ⭐ 💧
🐵 🐶 🐱 🐭 🐹 🐰 🦊 🐻 🐼 🐨 🐯 🦁 🐮 🐷 🐸 🐴 🦄 🐺 🐔 🐧 🐤 🦆 🦅 🦉 🦇 🐝 🐛 🦋 🐌 🐞 🕷️ 🐢 🐍 🦖 🦕 🐙 🦞 🦀
🐠 🐬 🐳 🦈 🐊 🦓 🐘 🦛 🐪 🦒 🦘 🐑 🐐 🦌 🦚 🦜 🦢 🦩 🦔 🐉
🌲 🌴 🌵 🍀 🍁 🍄 🌷 🌹 🌺 🌻 🌸 💐
🍎 🍐 🍊 🍋 🍌 🍉 🍇 🍓 🍒 🍑 🍍 🍅 🍆 🥑 🥦 🥕 🌽 🌶️ 🍞 🥐 🧀 🍳 🍔 🍟 🍕 🌭 🌮 🍣 🍜 🍦 🍩 🍪 🎂 🍰
🧁 🍫 🍭 🍿 🍯 ☕ 🍷 🍹 🍺 🥚
☀️ 🌙 ☁️ ⛈️ ⚡ ❄️ ⛄ 🌈 ☂️ 🌊 🌋 🌍 🪐
🚗 🚕 🚌 🚒 🚜 🚲 🚂 ✈️ 🚀 🛸 🚁 ⛵ 🚢 🚦 🏠 🏰 🗽 ⛺ 🏝️
⚽ 🏀 🏈 ⚾ 🎾 🏆 🎯 🎲 🎮 🎸 🎻 🎈 🎁 🎀 🎉 🎄
📱 💻 📷 📺 ⏰ 💡 🕯️ 💰 💎 🔨 🔧 🔑 🔒 🔔 📚 ✏️ ✂️ 📦 🔍 💣 🧲 🧸 👑 🎩 🎓 🕶️ 👕 👗 👟 👠 🎒 🚪 🚽 ⚔️
🔴 🟡 🟢 🔵 🟣 ✅ ❌ ❓ ❗ ☠️
""".split()
TONED = "👍 👋 ✊ ✌️ 💪 👶 👩".split()  # each of them in its default colour and in five skin tones
ALSO = (  # what people call a glyph when its CLDR name is not the first word that comes to mind
    "😀 smiley; 😂 tears of joy; 😇 angel; 😈 devil; 😉 wink; 😍 heart eyes; 😡 angry face; 😭 sobbing; 😱 scream; 😷 mask; 🤓 nerd; 🤔 thinking; "
    "🤗 hug; 🤠 cowboy; 🤡 clown; 🤢 sick; 🤯 mind blown; 🥳 party; 🥶 freezing; 😴 asleep; 😢 sad; 🤣 laughing; 👾 space invader; 💩 poop; "
    "🎃 halloween; 🎅 santa; 👄 lips; ❤️ heart; 💯 100; 💥 explosion; 💧 water; 🐵 monkey; 🐱 cat; 🐭 mouse; 🐰 rabbit; 🐮 cow; 🐷 pig; 🐔 hen; "
    "🐤 chick; 🐝 bee; 🐛 caterpillar; 🐞 ladybug; 🦕 dinosaur; 🐠 fish; 🐳 whale; 🦛 hippo; 🐑 sheep; 🌲 tree; 🌸 flower; 🍀 clover; 🍁 leaf; "
    "🌹 red rose; 💐 flowers; 🍎 apple; 🍊 orange; 🍒 cherry; 🌽 corn; 🌶️ chili; 🧀 cheese; 🍳 fried egg; 🍔 burger; 🍟 fries; 🍜 noodles; "
    "🍦 ice cream; 🍩 donut; 🎂 birthday; 🍰 cake; 🍫 chocolate; 🍭 candy; 🍯 honey; ☕ coffee; 🍷 wine; 🍹 cocktail; 🍺 beer; 🌙 moon; ⛈️ storm; "
    "⚡ lightning; ❄️ snow; ⛄ snowman; 🌊 wave; 🌍 earth; 🪐 saturn; 🚗 car; 🚒 fire truck; 🚲 bike; 🚂 train; ✈️ plane; 🚀 spaceship; 🛸 ufo; "
    "⛵ boat; 🚦 traffic light; 🏠 home; 🏝️ island; ⚽ football; 🏆 cup; 🎯 target; 🎲 dice; 🎮 game controller; 🎁 present; 🎀 bow; 🎉 confetti; "
    "📱 phone; 💻 computer; 📺 tv; ⏰ clock; 💡 idea; 💰 money; 💎 diamond; 🔒 lock; 📦 box; 🔍 magnifying glass; 🧸 toy; 👑 king; 🎩 hat; "
    "🎓 graduation; 👕 shirt; 👟 shoe; 👠 high heels; 🎒 bag; ⚔️ swords; ✅ check mark; ❌ cross; ❓ question mark; ❗ exclamation mark; "
    "☠️ pirate; 👍 like; 👋 hello; ✊ fist; ✌️ peace; 💪 muscle; 🐶 dog; 🐯 tiger; 🐴 horse"
)
HELD_OUT = {"👍": 2, "👋": 4, "✊": 1, "✌️": 3, "💪": 0, "👶": 1, "👩": 3}  # the tone (index into TONES) never shown to the networks


@dataclass(frozen=True)
class Glyph:
    """One picture and what it is called."""

    text: str  # the emoji sequence
    name: str  # its CLDR name
    keywords: tuple[str, ...]
    base: str  # the name without the skin tone
    held_out: bool = False


@cache
def _annotations() -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    called, keywords = {}, {}
    for folder in ("annotations", "annotationsDerived"):
        for a in ET.parse(CLDR / folder / "en.xml").getroot().iter("annotation"):
            if a.get("type") == "tts":
                called[a.get("cp")] = a.text
            else:
                keywords[a.get("cp")] = tuple(k.strip() for k in a.text.split("|"))
    return called, keywords


def names() -> dict[str, str]:
    """Every English short name of CLDR, by emoji sequence without variation selectors."""
    return _annotations()[0]


def _glyph(text: str, **options: bool) -> Glyph:
    plain = text.replace("\ufe0f", "")
    called, keywords = _annotations()
    name = called[plain]
    words = tuple(k for k in keywords.get(plain, ()) if k != name and "skin tone" not in k)
    return Glyph(text, name, words, re.split(r": (?=[a-z-]+ skin tone)", name)[0], **options)


def _with_tone(text: str, tone: int) -> str:
    plain = text.replace("\ufe0f", "")
    return plain[0] + chr(0x1F3FB + tone) + plain[1:]


def glyphs(*, held_out: bool = False) -> list[Glyph]:
    """The glyphs that the text-to-image networks are trained on, or those kept from them."""
    if held_out:
        return [_glyph(_with_tone(text, tone), held_out=True) for text, tone in HELD_OUT.items()]
    toned = [_with_tone(text, tone) for text in TONED for tone in range(5) if HELD_OUT[text] != tone]
    return [_glyph(text) for text in dict.fromkeys(CHOSEN + TONED + toned)]


def other_glyphs() -> list[Glyph]:
    """Further glyphs of one character, for the autoencoder alone: no flags, keycaps, sequences or skin tones."""
    taken = {g.text for g in glyphs()}
    strange = re.compile("[\U0001f3fb-\U0001f3ff\U0001f1e6-\U0001f1ff\u200d\u20e3\U000e0020-\U000e007f]")
    listed = sorted(text for text, entry in emoji.EMOJI_DATA.items() if entry["status"] == 2)
    return [_glyph(text) for text in listed if text not in taken and not strange.search(text) and text.replace("\ufe0f", "") in names()]


def cut_out(text: str) -> Image.Image:
    """The glyph in the font's size on nothing, cut to its edges."""
    font = ImageFont.truetype(str(FONT), 109, layout_engine=ImageFont.Layout.RAQM)  # the font's only bitmap size
    canvas = Image.new("RGBA", (256, 256), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((40, 40), text, font=font, embedded_color=True)
    return canvas.crop(canvas.getbbox())


def laid(cut: Image.Image, angle: float = 0.0, rise: float = 0.0) -> np.ndarray:
    """A cut-out glyph in the middle of a white page, turned by `angle` (degrees, counterclockwise), `rise` of the page above its place:
    (64, 64, 3) of uint8.
    """
    square = Image.new("RGBA", (SQUARE, SQUARE), (255, 255, 255, 0))
    square.paste(cut, ((SQUARE - cut.width) // 2, (SQUARE - cut.height) // 2))
    if angle or rise:
        square = square.rotate(angle, Image.Resampling.BICUBIC, translate=(0, round(-rise * SQUARE)))
    page = Image.alpha_composite(Image.new("RGBA", square.size, "white"), square)
    return np.asarray(page.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def render(text: str) -> np.ndarray:
    """The glyph on white: (64, 64, 3) of uint8."""
    return laid(cut_out(text))


def turning(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) whose hues go once around in eight frames: (8, H, W, 3) of uint8. The ninth would be the first, and the picture."""
    hues = np.asarray(Image.fromarray(picture).convert("HSV"))
    turned = [np.dstack([hues[..., 0] + np.uint8(256 * frame // FRAMES), hues[..., 1:]]) for frame in range(FRAMES)]  # modulo 256
    return np.stack([np.asarray(Image.fromarray(frame, "HSV").convert("RGB")) for frame in turned])


def compose(cut: Image.Image, *, width: float, height: float, angle: float, x: float, y: float) -> tuple[np.ndarray, np.ndarray]:
    """A cut-out glyph, stretched by `width` and `height`, then turned by `angle` (degrees, counterclockwise), on white: (64, 64, 3), and its
    silhouette, 255 where the glyph is: (64, 64), both of uint8. `x` and `y` in [0, 1] say where it stands in the room that is left to it.
    """
    cut = cut.resize((max(1, round(cut.width * width)), max(1, round(cut.height * height))), Image.Resampling.LANCZOS)
    cut = cut.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    cut = cut.crop(cut.getbbox())
    square = Image.new("RGBA", (SQUARE, SQUARE), (255, 255, 255, 0))
    square.paste(cut, (round(x * (SQUARE - cut.width)), round(y * (SQUARE - cut.height))))
    page = Image.alpha_composite(Image.new("RGBA", square.size, "white"), square)
    picture, alpha = (part.resize((SIZE, SIZE), Image.Resampling.LANCZOS) for part in (page.convert("RGB"), square.getchannel("A")))
    return np.asarray(picture), np.where(np.asarray(alpha) > 127, 255, 0).astype(np.uint8)


def placement(rng: np.random.Generator) -> dict[str, float]:
    """Where a glyph stands, at random: half to all of its size, one side up to a quarter shorter, turned by up to 45 degrees, anywhere."""
    size, squeeze = rng.uniform(0.5, 1.0), rng.uniform(-0.25, 0.25)
    stretch = {"width": size * (1 - max(0.0, squeeze)), "height": size * (1 + min(0.0, squeeze))}
    return {**stretch, "angle": rng.uniform(-45, 45), "x": rng.uniform(), "y": rng.uniform()}


def moderate(place: dict[str, float]) -> bool:
    """Whether a glyph that stands so is not too small and not turned too far to be drawn well in this few pixels."""
    return min(place["width"], place["height"]) >= 0.55 and abs(place["angle"]) <= 30


def delft(picture: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) as if painted on a tile: shades of cobalt blue on white."""
    grey = picture.astype(np.float32) @ np.float32([0.299, 0.587, 0.114]) / 255
    shades = [np.interp(grey, (0, 0.35, 0.75, 1), channel) for channel in ((8, 30, 150, 255), (20, 75, 190, 255), (70, 170, 235, 255))]
    return np.rint(np.stack(shades, 2)).astype(np.uint8)


def caption_pool(chosen: list[Glyph]) -> list[list[str]]:
    """Eight captions for each glyph: its name three times, what else it is called, with an article, as "NAME emoji", and twice with keywords."""
    also = dict(entry.split(" ", 1) for entry in ALSO.split("; "))
    pool = []
    for g in chosen:
        article = "an" if g.name[0].lower() in "aeiou" else "a"
        first, second = ", ".join((g.name, *g.keywords[:2])), ", ".join((g.name, *g.keywords[-2:]))
        pool.append([g.name] * 3 + [also.get(g.text, g.name), f"{article} {g.name}", f"{g.name} emoji", first, second])
    return pool


def _byte_letters() -> list[str]:
    """The 256 visible characters that byte-level BPE uses for bytes, in the order of CLIP's vocabulary."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in visible] + [chr(256 + i) for i in range(256 - len(visible))]


def save_tokenizer(folder: Path) -> None:
    """Learn a byte-level BPE in CLIP's style (lower case, `</w>` at the end of a word) from the captions and all CLDR names; write its files."""
    words = [c for pool in caption_pool(glyphs()) for c in pool] * 4 + sorted(names().values())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    split = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(split, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    letters = _byte_letters()
    trainer = trainers.BpeTrainer(vocab_size=4 * VOCABULARY, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(words, trainer)
    learned = json.loads(tokenizer.to_str())["model"]["merges"]
    start, end = "<|startoftext|>", "<|endoftext|>"
    merges = [tuple(m) for m in learned][: VOCABULARY - 2 * len(letters) - 2]
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), start, end]
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    settings = {
        **special,
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "do_lower_case": True,
        "errors": "replace",
        "add_prefix_space": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n", "utf-8")
