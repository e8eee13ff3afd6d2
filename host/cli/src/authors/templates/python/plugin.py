"""{{name}}: a plugin of Switchyard."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.messages import (
    Change,
    Decision,
    PublishVerdict_Reject,
    PublishVerdict_Replace,
)
from wit_world.imports.log import Level, log
from wit_world.imports.types import Refusal

ending = b""


class Lifecycle(exports.Lifecycle):
    def init(self, settings: str) -> None:
        """Called once, before anything else, with the [settings] of {{name}}.toml. An Err
        refuses the plugin with that message."""
        global ending
        text = json.loads(settings).get("ending")
        if not isinstance(text, str):
            raise Err("`ending` must be a string in the settings")
        ending = text.encode()
        log(Level.INFO, f"it starts with the ending {text!r}")


class Messages(exports.Messages):
    def on_publish(self, submissions, extras):
        """Returns the decisions about submissions that do not pass unchanged, in order. A
        submission is a publication and its origin; its channel is None where it is that of
        the submission before it. Put your logic here. Besides Replace and Reject there is
        PublishVerdict_Absorb. The extras are the keys, versions and tags of the few
        submissions that have some."""
        decisions = []
        for position, submission in enumerate(submissions):
            verdict = decide(submission)
            if verdict is not None:
                decisions.append(Decision(position, verdict))
        return decisions


def decide(submission):
    """Returns None for a submission that passes unchanged."""
    if not submission.payload:
        return PublishVerdict_Reject(Refusal("EMPTY", "there is nothing in it"))
    if not ending:
        return None
    # What is None stays as it is.
    changed = Change(channel=None, payload=submission.payload + ending, tags=None)
    return PublishVerdict_Replace(changed)
