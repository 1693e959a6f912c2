"""The gate before text leaves the machine.

PsyQA's user agreement forbids passing its text on to third parties, and a hosted model is one. So
an endpoint that is neither loopback nor a private address needs an acknowledgement by a person,
which the manifest records.
"""

from __future__ import annotations

from cbtqa.errors import LicenceGateError
from cbtqa.llm.endpoint import Endpoint
from cbtqa.manifest import now


def pass_disclosure_gate(
    endpoint: Endpoint, what: str, *, is_acknowledged: bool, is_invented: bool = False
) -> dict[str, str]:
    """What to write down about sending text away; empty when nothing is disclosed.

    Args:
        what: would be sent, such as `the questions`.
        is_invented: it is our own invented text, which may go anywhere.

    Raises:
        LicenceGateError: a non-local endpoint and no acknowledgement.
    """
    if endpoint.is_local or is_invented:
        return {}
    if not is_acknowledged:
        raise LicenceGateError(
            f"{what} would be sent to {endpoint.host}. PsyQA's user agreement forbids passing its "
            "text on to third parties, and a hosted model is one",
            hint="use a local endpoint (--endpoint vllm, ollama, llama.cpp), or, if you have "
            "permission or the data is yours, add --acknowledge-disclosure (recorded in the "
            "manifest)",
        )
    return {"disclosure": f"text sent to {endpoint.host}; acknowledged {now()}"}
