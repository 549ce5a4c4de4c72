"""A clock that stands still until a test moves it."""


class FakeClock:
    """Seconds since the epoch, as ``kvsage.clock.Clock`` gives them."""

    # A whole number: a ttl of whole seconds then ends at an instant that a float holds exactly.
    BEGINNING = 1_700_000_000.0

    def __init__(self, now=BEGINNING):
        self.now = now

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds
