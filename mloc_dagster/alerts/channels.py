"""Ways to tell: a webhook in Slack's way, any webhook, and e-mail. What fails raises NotTold and is tried again."""

from __future__ import annotations

import json
import os
import smtplib
import ssl
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from typing import Literal

from mloc_dagster.alerts.settings import Channel
from mloc_dagster.delivery.signature import signed
from mloc_dagster.spec.references import BadReference, resolve


class NotTold(Exception):
    """Something that could not be told; the message holds no secret."""


@dataclass(frozen=True)
class Notice:
    """That something began to hold, holds still, or does no more; `at` in seconds since the epoch."""

    key: str
    state: Literal["firing", "resolved"]
    text: str
    at: float


def tell(channel: Channel, notices: Sequence[Notice]) -> None:
    """Tell all of them in one message; raises NotTold."""
    from executors.secrets import Secrets

    secrets = Secrets(os.environ)
    try:
        values = {key: resolve(value, _no_stage, secrets) for key, value in channel.model_dump().items()}
        if channel.type == "email":
            _mail(Channel.model_construct(**values), notices)
        else:
            _post(Channel.model_construct(**values), notices)
    except BadReference as error:
        raise NotTold(f"{channel.name}: {error}") from None
    except (OSError, smtplib.SMTPException, ValueError) as error:
        raise NotTold(secrets.hide(f"{channel.name}: {_reason(error)}")[:500]) from None


def _post(channel: Channel, notices: Sequence[Notice]) -> None:
    import requests

    assert channel.url is not None
    if channel.type == "slack":
        body = {"text": "\n".join(map(_slack, notices))}
    else:
        body = {"alerts": [asdict(notice) for notice in notices]}
    data = json.dumps(body).encode()
    headers = {**channel.headers, "Content-Type": "application/json", **signed(channel.signing_secret, [data])}
    answer = requests.post(
        channel.url, data=data, headers=headers, timeout=channel.timeout_sec, allow_redirects=False, stream=True
    )
    with answer:
        if not 200 <= answer.status_code < 300:
            raise ValueError(f"was answered {answer.status_code} {answer.reason}")


def _slack(notice: Notice) -> str:
    """A line in which nothing of a name is a link or a mention."""
    text = notice.text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{':red_circle:' if notice.state == 'firing' else ':large_green_circle:'} MLOC: {text}"


def _mail(channel: Channel, notices: Sequence[Notice]) -> None:
    firing = [notice for notice in notices if notice.state == "firing"]
    first = " ".join((firing or list(notices))[0].text.split())
    message = EmailMessage()
    message["Subject"] = f"MLOC: {first}"[:200]
    message["From"], message["To"] = str(channel.sender), ", ".join(channel.to)
    message.set_content("\n".join(f"{notice.state}: {notice.text}" for notice in notices) + "\n")
    kind = smtplib.SMTP_SSL if channel.tls == "tls" else smtplib.SMTP
    with kind(str(channel.host), channel.port, timeout=channel.timeout_sec) as server:
        if channel.tls == "starttls":
            server.starttls(context=ssl.create_default_context())
        if channel.user:
            server.login(channel.user, channel.password or "")
        server.send_message(message)


def _no_stage(name: str) -> dict[str, str]:
    raise BadReference(f"an alert cannot use results of a stage ({name})")


def _reason(error: Exception) -> str:
    """The cause without the address, which is a secret in itself for many webhooks."""
    kind = type(error)
    if not kind.__module__.startswith("requests."):
        return f"{kind.__name__}: {error}"
    inner = error.args[0] if error.args else None
    return f"{kind.__name__}: {getattr(inner, 'reason', None) or 'no answer'}"
