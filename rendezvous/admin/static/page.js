// What the page does besides its forms: it updates itself, copies texts, and tells its time zone.
'use strict';

document.documentElement.classList.add('js');

const REFRESH_MILLISECONDS = 2000;
const ANSWER_MILLISECONDS = 10000;
const trouble = document.getElementById('trouble');
const {refresh: url} = document.body.dataset;
let shown = new Date(); // when the server last said that it is as it is shown
let etag = '';

// The message about what was done is shown once: not after a reload.
const here = new URL(location);
here.searchParams.delete('done');
history.replaceState(null, '', here);

// Times are said in the zone of the reader. True: the server did not know it yet.
function tellZone(path) {
  const {timeZone} = Intl.DateTimeFormat().resolvedOptions();
  const cookie = `zone=${timeZone}`;
  if (!timeZone || document.cookie.split('; ').includes(cookie)) return false;
  const secure = location.protocol === 'https:' ? '; Secure' : '';
  document.cookie = `${cookie}; Path=${path}; Max-Age=31536000; SameSite=Strict${secure}`;
  return true;
}

// Whether one element may become the other. Nothing under a finger may become another deed.
function isSame(old, fresh) {
  if (old.nodeName !== fresh.nodeName) return false;
  if (old.nodeType !== Node.ELEMENT_NODE) return true;
  if (old.id || fresh.id) return old.id === fresh.id;
  if (old.getAttribute('action') !== fresh.getAttribute('action')) return false;
  if (old.matches('button, summary')) return old.textContent === fresh.textContent;
  const [title, other] = [old, fresh].map(each => each.querySelector(':scope > summary'));
  return title?.textContent === other?.textContent;
}

// Makes `old` equal to `fresh` and changes nothing else: focus, selection, what is typed or
// checked, and what is folded out stay.
function update(old, fresh) {
  if (old.isEqualNode(fresh)) return;
  if (old.nodeType !== Node.ELEMENT_NODE) {
    old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const {name, value} of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of old.getAttributeNames()) {
    const opened = old.nodeName === 'DETAILS' && name === 'open';
    if (!opened && !fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  updateChildren(old, fresh);
}

function updateChildren(old, fresh) {
  const wanted = new Set([...fresh.children].map(each => each.id));
  for (const each of [...old.children]) if (each.id && !wanted.has(each.id)) each.remove();
  const byId = new Map([...old.children].filter(each => each.id).map(each => [each.id, each]));
  let at = old.firstChild; // what stands before it is done
  for (const child of [...fresh.childNodes]) {
    let found = byId.get(child.id);
    if (!found || !isSame(found, child)) found = next(at, child);
    if (!found) {
      old.insertBefore(child, at);
      continue;
    }
    update(found, child);
    if (found !== at) old.moveBefore ? old.moveBefore(found, at) : old.insertBefore(found, at);
    at = found.nextSibling;
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

// The next one that may become `child`. A text is but the very next.
function next(at, child) {
  if (child.id) return null;
  if (child.nodeType !== Node.ELEMENT_NODE) return at && isSame(at, child) ? at : null;
  while (at && !isSame(at, child)) at = at.nextSibling;
  return at;
}

// `update`, and whoever had the focus has it again, or its likeness.
function updateLive(old, fresh) {
  const focused = document.activeElement;
  update(old, fresh);
  if (document.activeElement === focused) return;
  const isLike = each => each.id === focused.id && each.ariaLabel === focused.ariaLabel;
  const likeness = focused.isConnected ? focused : (focused.id || focused.ariaLabel) &&
    [...old.querySelectorAll(focused.tagName)].find(isLike);
  likeness?.focus({preventScroll: true});
}

// Says what is wrong, wherever one has scrolled, and that all is as it was at `shown`.
function say(sentence, advice = '', link = '') {
  document.body.classList.toggle('stale', Boolean(sentence));
  trouble.hidden = !sentence;
  if (trouble.dataset.said === sentence + advice) return;
  trouble.dataset.said = sentence + advice;
  if (sentence) document.querySelector('.done')?.remove();
  const strong = document.createElement('strong');
  strong.textContent = sentence;
  trouble.replaceChildren(strong, ` ${advice} `);
  if (!link) return;
  const a = Object.assign(document.createElement('a'), {href: here, target: '_blank'});
  a.textContent = link;
  trouble.append(a);
}

function take(fresh) {
  for (const old of document.querySelectorAll('[data-live]')) {
    const same = fresh.querySelector(`[data-live]#${CSS.escape(old.id)}`);
    if (same) updateLive(old, same);
  }
  const icon = 'link[rel=icon]', token = fresh.querySelector('input[name=token]')?.value;
  document.title = fresh.title;
  if (document.querySelector(icon).href !== fresh.querySelector(icon).href) {
    document.querySelector(icon).href = fresh.querySelector(icon).href;
  }
  if (!token) return;
  // After another login the forms have another one; what is typed in them stays.
  for (const each of document.querySelectorAll('input[name=token]')) each.value = token;
}

async function refresh() {
  const since = shown.toTimeString().slice(0, 8);
  const then = `What you see is how it was at ${since}.`;
  try {
    // With a field of its own, fetch asks past the cache, which keeps nothing of this page.
    const headers = etag ? {'If-None-Match': etag} : {};
    const signal = AbortSignal.timeout(ANSWER_MILLISECONDS);
    const response = await fetch(url, {headers, signal, cache: 'no-store'});
    const text = await response.text();
    const fresh = new DOMParser().parseFromString(text, 'text/html');
    if (response.ok) take(fresh);
    else if (response.status !== 304) {
      if (fresh.querySelector('input[name=code]')) {
        say('Your session has ended.', `${then} What you typed here stays.`, 'Log in again, in a new tab');
      } else {
        const error = fresh.querySelector('.error:not([hidden])')?.textContent.trim();
        say(error || `The page answers with an error (${response.status}).`, then);
      }
      return;
    }
    etag = response.headers.get('ETag') ?? etag;
    shown = new Date();
    say('');
  } catch {
    say(`The page does not answer since ${since}.`, `What you see is how it was then. Does users_app.py still run? This page asks again every two seconds.`);
  }
}

// Nobody sees a hidden tab: it asks as soon as it is shown.
async function poll() {
  if (document.hidden) {
    document.addEventListener('visibilitychange', poll, {once: true});
    return;
  }
  await refresh();
  setTimeout(poll, REFRESH_MILLISECONDS);
}

async function copy(element) {
  const code = element.querySelector('code'), button = element.querySelector('button');
  const text = code.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // forbidden, or missing: without TLS, only loopback pages have it
    getSelection().selectAllChildren(code);
    document.execCommand('copy');
  }
  document.getElementById('copied').textContent = `Copied ${text}`;
  button.dataset.copied = '';
  setTimeout(() => delete button.dataset.copied, 1500);
}

document.addEventListener('click', event => {
  const button = event.target.closest('.copy button');
  if (button) copy(button.parentElement);
});

const isNewZone = tellZone(document.currentScript.dataset.base);
if (url) setTimeout(poll, isNewZone ? 0 : REFRESH_MILLISECONDS);
