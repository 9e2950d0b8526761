"""Logs hostile texts in every way that the processes log. Run by test_log_hygiene."""

import json
import logging
import sys

from telemetry import logs


def main() -> None:
    form, texts = sys.argv[1], json.loads(sys.stdin.read())
    logs.configure("test", form=form, level="DEBUG")  # type: ignore[arg-type]
    log, library = logs.get(), logging.getLogger("some.library")
    for text in texts:
        log.info("server.order.accepted", order_id=text)
        log.info("server.order.accepted", nested={"text": text, text: [text]})
        library.warning("it said %s", text)
        library.warning(text)
        try:
            raise ValueError(text)
        except ValueError as error:
            log.exception("server.call.failed", error=str(error))


if __name__ == "__main__":
    main()
