"""Mail: rendered from templates, sent by jobs that are stored in the caller's transaction.

- `message`: a mail, and what may stand in its headers · `templates`: text and HTML with escaped values
- `sender`: the port · `_console`: writes to the log · `_smtp`: sends
- `queue`: mail as jobs · `add`: `add_mail`
"""

from svc_infra.mail.add import add_mail
from svc_infra.mail.message import Message
from svc_infra.mail.sender import Sender
from svc_infra.mail.templates import Templates

__all__ = ["Message", "Sender", "Templates", "add_mail"]
