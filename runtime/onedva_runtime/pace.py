"""How much work fits a deadline: `Pace` learns from the clips before what the next one may cost, and asks for fewer
steps first, then for fewer latents. Without a deadline it asks for everything, so that results depend on no clock."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Pace"]

MARGIN = 0.9  # share of the deadline that is planned with: clips differ
SMOOTHING = 0.5  # weight of the newest clip
LEAST_SHARE = 1 / 64  # of the latents, below which there are none


@dataclass
class Pace:
    """State of one stream."""

    deadline_s: float | None
    """Seconds that coding a clip may take; None: as many as it takes."""
    fixed_s: float | None = None
    """What a clip takes beside its steps, as far as is known."""
    step_s: float = 0.0
    """What one step takes."""
    share: float = field(default=1.0, init=False)
    """Of the asked latents, which share the next clip gets."""

    def steps(self, asked: int) -> int:
        """How many steps the next clip may take, 1 to `asked`."""
        if self.deadline_s is None or self.fixed_s is None or self.step_s <= 0:
            return asked
        return max(1, min(asked, int((MARGIN * self.deadline_s - self.fixed_s) / self.step_s)))

    def tokens(self, asked: int) -> int:
        """How many latents the next clip may have, 0 to `asked`."""
        return asked if self.share >= 1 else int(self.share * asked)

    def record(self, *, fixed_s: float, steps_s: float = 0.0, steps: int = 0) -> bool:
        """Learn from a clip: seconds beside its steps, and in them; steps 0: what they took is not known, or there are
        none. Returns whether it was late."""
        if self.deadline_s is None:
            return False
        weight = 1.0 if self.fixed_s is None else SMOOTHING
        self.fixed_s = (1 - weight) * (self.fixed_s or 0.0) + weight * fixed_s
        if steps:
            self.step_s = (1 - weight) * self.step_s + weight * steps_s / steps
        late = fixed_s + steps_s > self.deadline_s
        if self.fixed_s + self.step_s > MARGIN * self.deadline_s:  # not even with a single step
            self.share = self.share / 2 if self.share / 2 >= LEAST_SHARE else 0.0
        elif self.fixed_s + self.step_s < MARGIN**2 * self.deadline_s:
            self.share = min(1.0, 1.25 * max(self.share, LEAST_SHARE))
        return late
