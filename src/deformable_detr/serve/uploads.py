"""Pictures as clients send them, and their decoding within the server's limit of pixels."""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import Image

from ..data.images import open_image, read_header
from ..errors import UserError
from .refusals import Kind, Refusal


@dataclass(frozen=True)
class Upload:
    """A picture as it was sent. `label` names it in messages; `file_name` is None if the client sent none."""

    content: bytes
    file_name: str | None
    label: str

    def decoded(self, max_pixels: int) -> Image:
        """Return the picture, upright and in RGB.

        Raises:
            Refusal: if the content is not a readable picture, or has more than `max_pixels` pixels.
        """
        try:
            height, width = read_header(self.content).stored_size
            if height * width > max_pixels:
                raise Refusal(
                    Kind.TOO_MANY_PIXELS,
                    f"{self.label} has {width} x {height} pixels, more than the server's limit of "
                    f"{max_pixels:,}: make it smaller.",
                )
            return open_image(self.content, max_pixels=max_pixels).picture
        except UserError as error:
            raise Refusal(Kind.NOT_AN_IMAGE, f"{self.label}: {error}") from error
