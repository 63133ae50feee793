"""Two small pages for a browser: which hidden server is wanted, and that nobody answers.

All paths of the host belong to hidden servers, so a page can load nothing: style and script are in
it, and its policy allows those by their hashes, and nothing else.
"""

from base64 import b64encode
from hashlib import sha256

from rendezvous.wire.http_head import Head

_STYLE = """
:root { color-scheme: light dark; font: 100%/1.5 system-ui, sans-serif;
  background: light-dark(#f5f6f8, #11151a); color: light-dark(#1c2430, #e3e8ef) }
main { max-width: 30rem; margin: 12vh auto 2rem; padding: 0 1.5rem; overflow-wrap: anywhere }
svg { width: 11.625rem; fill: none; stroke: light-dark(#5b6675, #94a0af); stroke-width: 2;
  stroke-linecap: round; stroke-linejoin: round }
.off { stroke-dasharray: 1 5 }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1rem 0; text-wrap: balance }
p { margin: 0 0 1rem }
small, #next { font-size: .875rem; color: light-dark(#566173, #9aa5b4) }
small code { white-space: nowrap }
[hidden] { display: none !important }
a, button { font: inherit; font-weight: 600; color: light-dark(#1559ad, #86b7ff);
  padding: .375rem .75rem; border: 1px solid; border-radius: .375rem; background: none;
  text-decoration: none; display: inline-block; cursor: pointer }
button { border-color: transparent; font-weight: 400 }
:focus-visible { outline: 2px solid; outline-offset: 2px }
"""
# A page that nobody looks at does not try. It is shown after a GET alone: a reload sends no form.
_SCRIPT = """
const next = document.getElementById('next'), stop = document.getElementById('stop');
let left = 10;
const timer = setInterval(() => {
  if (document.hidden) return;
  left -= 1;
  next.textContent = `Tries again in ${left} s.`;
  if (left === 0) { clearInterval(timer); location.reload(); }
}, 1000);
document.querySelector('a').onclick = () => { location.reload(); return false; }; // keeps its #
stop.hidden = false;
stop.onclick = () => {
  clearInterval(timer);
  next.textContent = 'Tries no more by itself.';
  stop.hidden = true;
};
"""
_PHONE = '<rect x="10" y="8" width="18" height="32" rx="3"/><path d="M17 35h4"/>'
_SERVER = '<rect x="84" y="10" width="32" height="12" rx="2"/>'
_SERVER += '<rect x="84" y="26" width="32" height="12" rx="2"/>'
_ASKS = f'{_PHONE}<path d="M36 24H76M70 19l6 5-6 5"/>{_SERVER}'
_NO_HOME = '<path class="off" d="M124 24h28"/><path d="M160 25 176 11l16 14M165 22V40h22V22"/>'


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _page(title: str, picture: str, text: str, more: str = '', script: str = '') -> bytes:
    policy = f"default-src 'none'; style-src {_hash(_STYLE)}; base-uri 'none'"
    policy += f'; script-src {_hash(script)}' if script else ''
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
{more}<title>{title}</title>
<style>{_STYLE}</style>
<main>
<svg aria-hidden="true" viewBox="9 4 186 40">{picture}</svg>
<h1>{title}</h1>
{text}
</main>
{f'<script>{script}</script>' if script else ''}
""".encode()


WHO = _page(
    'Which machine do you want?',
    _ASKS,
    """<p>This address leads to many machines. Your browser asks for a user name: that is the UUID
of the one you want, like <code>10000000-0000-4000-8000-000000000001</code>. Any password will do.
<p><a href="">Ask me again</a>
<p><small>The person who runs the machine can tell you its UUID. In a program:
<code>curl --digest -u UUID:x</code></small>""",
)
NOBODY = _page(
    'Nobody answers here at the moment',
    _ASKS + _NO_HOME,
    """<p>The machine that you want is not connected at the moment. Or its name is not quite right:
check the address, or the user name that you gave.
<p><a href="">Try again now</a> <button id="stop" type="button" hidden>Stop trying</button>
<p id="next">Tries again every 10 seconds.""",
    '<noscript><meta http-equiv="refresh" content="10"></noscript>\n',
    _SCRIPT,
)


def are_for(head: Head) -> bool:
    """Whether a page is the right answer: a browser shows it. Others get JSON."""
    accepts = ','.join(head.values('accept')).lower()
    return head.method in ('GET', 'HEAD') and 'text/html' in accepts
