// What the page does besides its forms: it updates itself, and copies texts.
'use strict';

document.documentElement.classList.add('js');

const REFRESH_MILLISECONDS = 2000;
const trouble = document.getElementById('trouble');
const {refresh: url} = document.body.dataset;
let shown = new Date();

// Makes `old` equal to `fresh` and changes nothing else, so that focus and selection stay.
function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeName !== fresh.nodeName || old.childNodes.length !== fresh.childNodes.length) {
    const focused = old.contains(document.activeElement) && document.activeElement;
    old.replaceWith(fresh);
    if (focused && (focused.id || focused.ariaLabel)) {
      const same = each => each.id === focused.id && each.ariaLabel === focused.ariaLabel;
      [...fresh.querySelectorAll(focused.tagName)].find(same)?.focus();
    }
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) old.nodeValue = fresh.nodeValue;
  for (const {name, value} of fresh.attributes ?? []) old.setAttribute(name, value);
  const children = [...fresh.childNodes];
  [...old.childNodes].forEach((child, i) => update(child, children[i]));
}

// The message about what was done is shown once: not after a reload.
history.replaceState(null, '', location.href.replace(/[?&]done=\w+/, ''));

function say(sentence) {
  if (sentence) document.querySelector('.done')?.remove();
  if (trouble.textContent !== sentence) trouble.textContent = sentence;
  trouble.hidden = !sentence;
}

async function refresh() {
  const since = `This is how it was at ${shown.toLocaleTimeString()}.`;
  try {
    const response = await fetch(url, {signal: AbortSignal.timeout(10000)});
    const fresh = new DOMParser().parseFromString(await response.text(), 'text/html');
    if (!response.ok) {
      const error = fresh.querySelector('.error:not([hidden])')?.textContent;
      say(`${error ?? 'You are logged out: reload the page to log in.'} ${since}`);
      return;
    }
    for (const old of document.querySelectorAll('[data-live]')) {
      update(old, fresh.getElementById(old.id));
    }
    shown = new Date();
    say('');
  } catch {
    say(`The page does not answer: does users_app.py still run? ${since}`);
  }
}

async function poll() {
  if (!document.hidden) await refresh();
  setTimeout(poll, REFRESH_MILLISECONDS);
}

// Also selects the text: this shows what was copied, and helps Ctrl-C if copying is forbidden.
async function copy(element) {
  const code = element.querySelector('code'), button = element.querySelector('button');
  getSelection().selectAllChildren(code);
  try {
    await navigator.clipboard.writeText(code.textContent);
  } catch { // forbidden, or missing: without TLS, only loopback pages have it
    document.execCommand('copy');
  }
  document.getElementById('copied').textContent = `Copied ${code.textContent}`;
  button.dataset.copied = '';
  setTimeout(() => delete button.dataset.copied, 1500);
}

document.addEventListener('click', event => {
  const element = event.target.closest('.copy');
  if (element && !event.target.closest('a')) copy(element);
});

if (url) setTimeout(poll, REFRESH_MILLISECONDS);
