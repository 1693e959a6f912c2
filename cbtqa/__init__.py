"""Chinese mental-health question answering in the structure of cognitive behavioural therapy.

Research software, never a therapist. `docs/architecture.md` draws the rooms of this package.
"""

__version__ = "0.1.0"
