// Asks its address again and again and puts what changed where `data-live` says.
const name = new URL(ADDRESS, document.baseURI);
let seen = '', papers = null, final = false, every = 1000, lost = 0;
const put = (told) => {
  for (const at of document.querySelectorAll('[data-live]')) {
    const html = told[at.dataset.live];
    if (html === undefined || at.told === html) continue;
    at.told = html;
    const inner = at.querySelector('[tabindex]'), top = inner ? inner.scrollTop : 0;
    const ended = !inner || top + inner.clientHeight > inner.scrollHeight - 4;
    at.innerHTML = html;
    const anew = at.querySelector('[tabindex]');
    // A log shows its last line, until somebody scrolls up.
    if (anew) anew.scrollTop = ended && anew.matches('[role=log]') ? anew.scrollHeight : top;
  }
};
// Plan, picture and card: larger, and seldom another.
const fetchPapers = async () => {
  const from = new URL('live/papers', document.baseURI);
  from.searchParams.set('id', name.searchParams.get('id'));
  try {
    const answer = await fetch(from, { cache: 'no-store', signal: AbortSignal.timeout(10000) });
    if (!answer.ok) throw new Error(answer.status);
    put(await answer.json());
  } catch (error) {
    papers = null; seen = '';
  }
};
const look = async () => {
  if (!element.isConnected) return;
  try {
    const id = new URLSearchParams(window.location.search).get('id');
    if (id !== null) name.searchParams.set('id', id);
    name.searchParams.set('seen', seen);
    const answer = await fetch(name, { cache: 'no-store', signal: AbortSignal.timeout(10000) });
    if (answer.status !== 200 && answer.status !== 204) throw new Error(answer.status);
    lost = 0;
    if (answer.status === 200) {
      const told = await answer.json();
      seen = told.version; final = told.final; every = told.every || 1000;
      put(told);
      if (told.can !== undefined) document.body.dataset.can = told.can;
      if (told.papers !== undefined && told.papers !== papers) {
        // Not all open pages at once.
        setTimeout(fetchPapers, papers === null ? 0 : Math.random() * 2000);
      }
      papers = told.papers ?? null;
    }
  } catch (error) {
    lost += 1;
  }
  element.querySelector('.ts-lost').hidden = lost < 3;
  clearTimeout(element.next);
  element.next = setTimeout(look, document.hidden ? 10000 : final ? 4000 : every);
};
window.addEventListener('ts-look', look);
document.addEventListener('visibilitychange', () => { if (!document.hidden) look(); });
look();
