"""Writes 👍 for `:+1:`, and so on, in what is published."""

import re

from wit_world import exports
from wit_world.exports.messages import Change, Decision, PublishVerdict_Replace

EMOJI = {"+1": "👍", "heart": "❤️", "smile": "😄", "tada": "🎉", "wave": "👋"}
NAMES = re.compile(r":(\+1|heart|smile|tada|wave):")


class Lifecycle(exports.Lifecycle):
    def init(self, settings):
        pass


class Messages(exports.Messages):
    def on_publish(self, submissions, extras):
        decisions = []
        for position, submission in enumerate(submissions):
            changed = with_emoji(submission.payload)
            if changed is not None:
                verdict = PublishVerdict_Replace(Change(None, changed, None))
                decisions.append(Decision(position, verdict))
        return decisions


def with_emoji(payload):
    """The payload with emoji; None: there is none in it."""
    try:
        text = payload.decode()
    except UnicodeDecodeError:
        return None
    written = NAMES.sub(lambda found: EMOJI[found[1]], text)
    return None if written == text else written.encode()
