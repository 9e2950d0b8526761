"""A mail server that has blocked the sender: `python -m tests.faults.blocking_mail --port 1025 --folder DIR`."""

from aiosmtpd.smtp import SMTP, Envelope, Session

from devstack import mail


class BlockingFolder(mail.MailFolder):
    """aiosmtpd's handler: stores nothing."""

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        return "550 5.7.1 blocked because of the sender's reputation"


if __name__ == "__main__":
    mail.main(handler=BlockingFolder)
