package admin_test

import (
	"bytes"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
)

// TestBrowser has Chromium show the page while the process lives through an ejection, a circuit that opens, a reload and a refused
// reload. It needs chromium and chromium-driver: make browser.
func TestBrowser(t *testing.T) {
	if os.Getenv("MESH_CHROMIUM") == "" {
		t.Skip("MESH_CHROMIUM is not set: make browser runs this test")
	}
	leak.Check(t)
	s := newScene(t)
	stop := s.traffic(1)
	defer stop()
	s.search.Store(int64(20 * time.Millisecond))
	b := newBrowser(t)
	b.look(1280, 900, false, "light")
	b.open(s.admin.URL + "/debug/mesh/")
	shows := func(what, section string, texts ...string) {
		t.Helper()
		began := time.Now()
		var text string
		if !await.Done(func() bool {
			text = b.text(section)
			return !slices.ContainsFunc(texts, func(want string) bool { return !strings.Contains(text, want) })
		}) {
			t.Fatalf("%s is not shown: %q, want %q", what, text, texts)
		}
		t.Logf("%s is shown after %v at most", what, time.Since(began).Round(time.Millisecond))
	}
	shows("traffic", "graph", "payments.shop:80", "inventory.shop:80", "shop/web", "peers without an identity")
	shows("calm", "hurts", "Nothing hurts")
	shows("that the page is live", "live", "live,")
	keep(t, "calm-light.png", b.picture(false))

	// One endpoint fails until it is ejected.
	s.payments[1].Store(http.StatusServiceUnavailable)
	shows("the ejection", "hurts", "payments.shop:80", "is out: consecutive_5xx")
	shows("the event", "happened", "ejection", "payments.shop:80")

	// A destination fails as a whole, and its circuit opens.
	s.mail.Store(http.StatusInternalServerError)
	shows("the circuit", "hurts", "mail.shop:80", "The circuit is open", "the circuit opened", "5 of 5 calls failed")

	// Documents are replaced, and then some that are wrong are refused.
	if err := s.mesh.Apply(documents()...); err != nil {
		t.Fatal(err)
	}
	shows("the reload", "loads", "load 2", "good")
	if s.mesh.Apply(broken()...) == nil {
		t.Fatal("documents with a mistake are in force")
	}
	shows("the refused reload", "hurts", "Documents are refused: load 3", "mesh.d/payments.yaml:")
	shows("the finding", "loads", "load 3", "refused", "perTryTimeout")

	// Another one is slow, and a peer asks for what it may not have.
	s.search.Store(int64(700 * time.Millisecond))
	for range 4 {
		call(s.peers[1], "GET", "http://orders/admin/users")
	}
	shows("the denial", "hurts", "are denied", "shop/batch")
	shows("the slow destination", "hurts", "search.shop:80", "Slow: 1 of 100 calls takes")

	b.keyboard()
	b.pictures()
	if list := b.complaints(s.admin.URL); len(list) > 0 {
		t.Errorf("the browser complains:\n%s", strings.Join(list, "\n"))
	}

	// The connection breaks, and the page finds its way back by itself.
	s.admin.CloseClientConnections()
	was := b.text("live")
	await.True(t, "the page is live again", func() bool {
		is := b.text("live")
		return strings.HasPrefix(is, "live") && is != was
	})
	if err := s.mesh.Apply(documents()...); err != nil {
		t.Fatal(err)
	}
	shows("what happened meanwhile", "loads", "load 4")
	b.open("about:blank")
	stop()
}

// keyboard uses the page without a mouse: pause, filter, open a destination and keep it open while the page changes.
func (b *browser) keyboard() {
	t := b.t
	t.Helper()
	press := func(keys string) {
		t.Helper()
		var actions []any
		for _, key := range keys {
			actions = append(actions, map[string]any{"type": "keyDown", "value": string(key)}, map[string]any{"type": "keyUp", "value": string(key)})
		}
		b.post("/actions", map[string]any{"actions": []any{map[string]any{"type": "key", "id": "keyboard", "actions": actions}}}, nil)
	}
	const tab, enter, escape = "\ue004", "\ue007", "\ue00c"
	press(tab)
	var skip string
	b.eval("return document.activeElement.textContent", &skip)
	if skip != "Skip to what hurts" {
		t.Errorf("the first tab goes to %q, want the link that skips the head", skip)
	}
	b.eval("document.querySelector('#hurts a').focus()", nil)
	press(enter)
	var open bool
	await.True(t, "the destination is open", func() bool {
		b.eval("const d = document.activeElement.closest('details'); return !!d && d.open && d === document.querySelector(location.hash)", &open)
		return open
	})
	was := b.text("live")
	await.True(t, "the page goes on", func() bool { return b.text("live") != was })
	b.eval("const d = document.activeElement.closest('details'); return !!d && d.open", &open)
	if !open {
		t.Error("a destination that was open, with the focus in it, is not any more after the page has changed")
	}
	press("p")
	if text := b.text("live"); text != "paused" {
		t.Errorf("after p the page is %q, want paused", text)
	}
	press("p")
	await.True(t, "the page goes on", func() bool { return strings.HasPrefix(b.text("live"), "live") })
	press("/inventory")
	var rows int
	b.eval("return [...document.querySelectorAll('#destinations details')].filter(d => d.checkVisibility()).length", &rows)
	if rows != 1 {
		t.Errorf("the filter leaves %d destinations, want 1", rows)
	}
	press(escape)
	b.eval("return [...document.querySelectorAll('#destinations details')].filter(d => d.checkVisibility()).length", &rows)
	if rows != 4 {
		t.Errorf("without filter there are %d destinations, want 4", rows)
	}
	b.eval("for (const d of document.querySelectorAll('details')) d.open = false; document.activeElement.blur(); history.replaceState(null, '', '?')", nil)
	b.eval("document.activeElement.blur(); scrollTo(0, 0)", nil)
}

// pictures keeps pictures in light, dark and on a phone, and checks that all of it can be read.
func (b *browser) pictures() {
	t := b.t
	t.Helper()
	for _, look := range []struct {
		name          string
		width, height int
		phone         bool
		scheme        string
	}{
		{"light", 1280, 900, false, "light"}, {"dark", 1280, 900, false, "dark"},
		{"tablet-light", 820, 1100, true, "light"}, {"phone-light", 390, 844, true, "light"}, {"phone-dark", 390, 844, true, "dark"},
	} {
		b.look(look.width, look.height, look.phone, look.scheme)
		b.eval("for (const d of document.querySelectorAll('#destinations details.critical, #calls details')) d.open = false", nil)
		keep(t, look.name+".png", b.picture(false))
		if look.name == "light" {
			b.readme()
		}
		b.eval("for (const d of document.querySelectorAll('#destinations details.critical, #destinations details.warning, #calls details:nth-of-type(-n+2)')) d.open = true", nil)
		keep(t, look.name+"-whole.png", b.picture(true))
		var wide float64
		b.eval("return document.documentElement.scrollWidth", &wide)
		if int(wide) > look.width {
			t.Errorf("%s: the page is %v pixels wide, in a window of %d", look.name, wide, look.width)
		}
		var odd []string
		b.eval("return [...document.querySelectorAll('td, th')].filter(e => getComputedStyle(e).display !== 'table-cell').map(e => e.className)", &odd)
		if len(odd) > 0 {
			t.Errorf("%s: cells of tables that are laid out as something else: %q", look.name, odd)
		}
		var pale []string
		b.eval(contrast, &pale)
		for _, text := range pale {
			t.Errorf("%s: too little contrast: %s", look.name, text)
		}
	}
}

// readme keeps the picture of the README. -update puts it there.
func (b *browser) readme() {
	t := b.t
	t.Helper()
	var bottom float64
	b.eval("return document.getElementById('graph').getBoundingClientRect().bottom + scrollY", &bottom)
	data := b.clip(1280, bottom+16)
	if len(data) > 200_000 {
		t.Errorf("the picture of the README has %d kB, want 200 at most", len(data)/1000)
	}
	keep(t, "readme.png", data)
	if *update {
		if err := os.WriteFile(filepath.Join("..", "docs", "admin.png"), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// contrast lists the texts that are paler than WCAG's AA permits: 4.5 to 1.
const contrast = `
const channels = (c) => { const m = c.match(/[\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = channels(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255, 1]; };
const pale = new Set();
const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
for (let n; (n = walk.nextNode());) {
  const e = n.parentElement;
  if (!n.nodeValue.trim() || !e.checkVisibility() || e.closest("svg")) continue;
  const a = light(channels(getComputedStyle(e).color)), b = light(behind(e));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) pale.add(e.className + " " + ratio.toFixed(2) + " " + n.nodeValue.trim().slice(0, 30));
}
return [...pale];
`

// keep keeps a picture: in the folder MESH_ARTIFACTS, or among the artifacts of the test.
func keep(t *testing.T, name string, data []byte) {
	t.Helper()
	if !bytes.HasPrefix(data, []byte("\x89PNG")) {
		t.Fatalf("%s is no picture", name)
	}
	dir := os.Getenv("MESH_ARTIFACTS")
	if dir == "" {
		dir = t.ArtifactDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d kB", path, len(data)/1000)
}
