"""Chat templates that write today's date (Llama 3.2's), made to write one date for ever."""

import json
import re
from datetime import datetime

FORMAT = re.compile(r"""\bstrftime_now\(\s*(?:format\s*=\s*)?(['"])(.*?)\1""")
"""Where a template asks for the date, and in which form."""


def dated(template: str, now: datetime) -> str:
    """Return a chat template that tells one date, in every form that it asks for.

    Transformers hands templates `strftime_now`, the clock, which no argument replaces; a macro of that name does. A
    form that does not stand in the template as text ends in the template's own error.
    """
    dates = {form: now.strftime(form) for _, form in FORMAT.findall(template)}
    if not dates:
        return template
    unknown = "raise_exception('strftime_now must be given its format as a plain string')"
    told = f"{{{{ dates[format] if format in dates else {unknown} }}}}"
    listed = f"{{%- set dates = {json.dumps(dates, ensure_ascii=False)} -%}}"
    # the line break belongs to the macro: jinja drops it, and not the one that a template may begin with
    return f"{{%- macro strftime_now(format) -%}}{listed}{told}{{%- endmacro %}}\n{template}"
