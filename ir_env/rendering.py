"""Pictures and text of an episode."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import cv2
import numpy as np

from ir_env.actions import ActionTable
from ir_env.episode import Episode

__all__ = ["film_strip", "sheet", "show", "transcript"]

TILE, CAPTION, GAP = 192, 46, 6
WIDEST = 4 * TILE
BACKGROUND, INK, FAINT = (250, 250, 248), (25, 25, 30), (110, 110, 118)


def film_strip(episode: Episode, actions: ActionTable, metrics: Sequence[str]) -> np.ndarray:
    """The strip before | steps | after (| clean, if there is a reference), with the tool and the scores under each picture.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    titles = [episode.combo or "input", *map(actions.name, episode.applied)]
    tiles = [
        (state.as_uint8(), title, _scores(metrics, scores))
        for state, title, scores in zip(episode.states, titles, episode.scores, strict=False)
    ]
    if episode.terminated and not episode.error:
        pixels, title, scores = tiles[-1]
        tiles[-1] = (pixels, f"{title}, stop", scores)
    if episode.error:
        tiles.append((episode.state.as_uint8(), "tool failed", episode.error[:40]))
    if episode.reference is not None:
        tiles.append((episode.reference, "clean", ""))
    return sheet(tiles)


def sheet(tiles: Sequence[tuple[np.ndarray, str, str]]) -> np.ndarray:
    """Pictures side by side, each with a title and a line beneath; uint8 (H, W, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [_fit(pixels) for pixels, _, _ in tiles]
    width = sum(picture.shape[1] for picture in pictures) + GAP * (len(pictures) + 1)
    canvas = Image.new("RGB", (width, TILE + CAPTION + 2 * GAP), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    title_font, small_font = ImageFont.load_default(14), ImageFont.load_default(12)
    left = GAP
    for picture, (_, title, note) in zip(pictures, tiles, strict=True):
        canvas.paste(Image.fromarray(picture), (left, GAP))
        for text, font, ink, top in ((title, title_font, INK, 4), (note, small_font, FAINT, 24)):
            draw.text((left, TILE + GAP + top), _shorten(text, font, picture.shape[1]), font=font, fill=ink)
        left += picture.shape[1] + GAP
    return np.asarray(canvas)


def transcript(episode: Episode, actions: ActionTable, metrics: Sequence[str]) -> str:
    """The episode as text: one line per state."""
    lines = [f"{episode.sample}", f"  start            {_scores(metrics, episode.scores[0])}"]
    applied = list(episode.applied)
    for index in episode.history:
        if applied and index == applied[0]:
            applied.pop(0)
        state = len(episode.applied) - len(applied)
        lines.append(f"  {actions.name(index):<16} {_scores(metrics, episode.scores[state])}")
    lines.append(f"  reward {episode.total_reward:+.3f}{', ' + episode.error if episode.error else ''}")
    return "\n".join(lines)


def show(picture: np.ndarray) -> None:
    """Show a picture in a window of matplotlib; warns where there is none to show it in."""
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() == "agg":
        warnings.warn("no display or window toolkit for matplotlib: nothing is shown; use render_mode='rgb_array'", stacklevel=3)
        return
    figure = pyplot.figure("ir_env", figsize=(picture.shape[1] / 100, picture.shape[0] / 100))
    figure.clear()
    figure.add_axes((0, 0, 1, 1)).imshow(picture)
    figure.axes[0].axis("off")
    pyplot.pause(0.001)


def _fit(pixels: np.ndarray) -> np.ndarray:
    """Scale to the height of a tile, or to the greatest width: nearest-neighbour up, so that pixels show; area-averaged down."""
    height, width = pixels.shape[:2]
    factor = min(TILE / height, WIDEST / width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_NEAREST if factor > 1 else cv2.INTER_AREA)


def _scores(metrics: Sequence[str], scores: np.ndarray) -> str:
    return "  ".join(f"{name} {value:.3g}" for name, value in zip(metrics, scores, strict=True))


def _shorten(text: str, font, width: int) -> str:
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 1 else ""
    return text
