"""Writes 👍 for `:+1:`, and so on, in what is published."""

import re

from wit_world import exports
from wit_world.exports.messages import PublishVerdict_Continue, PublishVerdict_Replace
from wit_world.imports.types import Publication

EMOJI = {"+1": "👍", "heart": "❤️", "smile": "😄", "tada": "🎉", "wave": "👋"}
NAMES = re.compile(r":(\+1|heart|smile|tada|wave):")


class Lifecycle(exports.Lifecycle):
    def init(self, settings):
        pass


class Messages(exports.Messages):
    def on_publish(self, submissions):
        return [verdict(submission.publication) for submission in submissions]


def verdict(publication):
    try:
        text = publication.payload.decode()
    except UnicodeDecodeError:
        return PublishVerdict_Continue()
    written = NAMES.sub(lambda found: EMOJI[found[1]], text)
    if written == text:
        return PublishVerdict_Continue()
    return PublishVerdict_Replace(Publication(publication.channel, written.encode()))
