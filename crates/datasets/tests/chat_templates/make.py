"""Renders the templates of `templates.json` with transformers' own renderer, and writes `expected.json` beside it.

Made with Python 3.11, transformers 5.23.0 and Jinja2 3.1.6 (pip install transformers==5.23.0 jinja2==3.1.6); no torch is needed.
The templates and all texts are our own. The clock stands at 2026-11-30 00:00:00.

    python make.py
"""

import datetime
import json
from pathlib import Path

import jinja2
import transformers
from transformers.utils import chat_template_utils

assert transformers.__version__ == "5.23.0" and jinja2.__version__ == "3.1.6"


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2026, 11, 30)


chat_template_utils.datetime = Clock

folder = Path(__file__).parent
cases = json.loads((folder / "templates.json").read_text(encoding="utf-8"))
tokens = {"bos_token": "<s>", "eos_token": "</s>"}
results = []
for case in cases:
    messages = [{"role": role, "content": content} for role, content in case["messages"]]
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [messages], chat_template=case["template"], add_generation_prompt=case["open"], **tokens
        )
        results.append({"name": case["name"], "text": rendered[0]})
    except Exception as error:
        results.append({"name": case["name"], "error": type(error).__name__})
about = f"made by make.py with transformers {transformers.__version__}, Jinja2 {jinja2.__version__}"
text = json.dumps({"about": about, "results": results}, indent=1, ensure_ascii=True)
(folder / "expected.json").write_text(text + "\n", encoding="utf-8")
