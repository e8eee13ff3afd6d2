"""{{name}}: a plugin of Switchyard."""

import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.exports.messages import PublishVerdict_Reject, PublishVerdict_Replace
from wit_world.imports.log import Level, log
from wit_world.imports.types import Publication, Refusal

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
    def on_publish(self, submissions):
        """Returns one verdict for each submission, in order: a publication, and the
        connection that it is from. Put your logic here. Besides Replace and Reject there
        are PublishVerdict_Continue(), which lets it pass unchanged, and
        PublishVerdict_Absorb."""
        return [verdict(submission.publication) for submission in submissions]


def verdict(publication):
    if not publication.payload:
        return PublishVerdict_Reject(Refusal("EMPTY", "there is nothing in it"))
    changed = publication.payload + ending
    return PublishVerdict_Replace(Publication(publication.channel, changed))
