"""Which retentions `orderflow db purge` takes: none after which a record may come that nobody knows any more."""

import datetime
from typing import Final

from messaging import topics
from settings import PREFIX, Settings, SettingsError

_DAY: Final = datetime.timedelta(days=1)


def refuse_short(settings: Settings) -> None:
    """Checks every retention.

    Raises:
        SettingsError: names each one that is too short, and how long it has to be.
    """
    problems = []
    for name in type(settings.retention).model_fields:
        days, (least, why) = getattr(settings.retention, name), _least(name, settings)
        if days < least / _DAY:
            problems.append(
                f"{PREFIX}RETENTION_{name.upper()}: {days} days are fewer than the {least / _DAY:g} that {why}"
            )
    if problems:
        raise SettingsError("Nothing was purged:\n  " + "\n  ".join(problems))


def _least(name: str, settings: Settings) -> tuple[datetime.timedelta, str]:
    """Returns the shortest time that a setting may have, and what takes so long."""
    delays = settings.kafka.retry_delay_seconds
    longest = topics.longest_kept(delays), "a topic may keep a record"
    told = datetime.timedelta(hours=settings.notification.max_age_hours), "an event may be told of"
    match name:
        case "notification_intents_days":
            return max(longest, told)
        case "erasures_days":
            return topics.longest_way(delays), "the topics, one after the other, may keep a record"
        case _:
            return longest
