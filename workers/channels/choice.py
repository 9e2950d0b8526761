"""The channels that the settings choose. What only one of them needs is imported where that one is built."""

import pathlib
from typing import TYPE_CHECKING

from settings import EmailSettings, SettingsError, SmsSettings

if TYPE_CHECKING:
    from workers.channels.channel import Channel
    from workers.channels.email import EmailChannel


def email_channel(settings: EmailSettings) -> "EmailChannel":
    """Returns the channel of the settings. It connects with the first message.

    Raises:
        SettingsError: the sender or the authorities' file cannot be used.
    """
    from workers.channels.email import EmailChannel
    from workers.channels.smtp_pool import SmtpServer

    try:
        return EmailChannel(
            SmtpServer(
                host=settings.host,
                port=settings.port,
                tls=settings.tls,
                ca_file=settings.ca_file,
                username=settings.username,
                password=settings.password.get_secret_value() if settings.password else None,
                timeout_seconds=settings.timeout,
            ),
            sender=settings.sender,
            send_limit_seconds=settings.timeout,
            connections=settings.connections,
        )
    except OSError as error:  # an ssl.SSLError is one
        raise SettingsError(f"ORDERFLOW_EMAIL_CA_FILE: {error}") from error
    except ValueError as error:
        raise SettingsError(f"ORDERFLOW_EMAIL_SENDER: {error}") from error


def sms_channel(settings: SmsSettings) -> "Channel":
    """Returns the channel of the settings. It connects with the first message.

    Raises:
        SettingsError: the address or the authorities' file cannot be used.
    """
    if settings.kind == "folder":
        from workers.channels.sms import FolderSmsChannel

        return FolderSmsChannel(pathlib.Path(settings.folder))

    import httpx

    from workers.channels.sms_http import HttpSmsChannel

    assert settings.url is not None
    assert settings.token is not None
    try:
        return HttpSmsChannel(
            settings.url,
            token=settings.token.get_secret_value(),
            send_limit_seconds=settings.timeout,
            ca_file=settings.ca_file,
        )
    except OSError as error:  # an ssl.SSLError is one
        raise SettingsError(f"ORDERFLOW_SMS_CA_FILE: {error}") from error
    except httpx.InvalidURL as error:
        raise SettingsError(f"ORDERFLOW_SMS_URL: {error}") from error
