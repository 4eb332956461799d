package admin_test

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"
)

// browser is a Chromium that is driven by the protocol of W3C WebDriver, in a session of its own.
type browser struct {
	t       *testing.T
	session string // URL
}

// newBrowser starts chromedriver, which starts Chromium. Both end with the test.
func newBrowser(t *testing.T) *browser {
	t.Helper()
	driver := exec.Command("chromedriver", "--port=0")
	out, err := driver.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := driver.Start(); err != nil {
		t.Fatalf("%v: install chromium and chromium-driver", err)
	}
	port := make(chan string, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		started := regexp.MustCompile(`started successfully on port (\d+)`)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			if m := started.FindStringSubmatch(lines.Text()); m != nil {
				port <- m[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = driver.Process.Kill()
		<-done
		_ = driver.Wait()
	})
	var base string
	select {
	case p := <-port:
		base = "http://127.0.0.1:" + p
	case <-done:
		t.Fatal("chromedriver ended")
	case <-time.After(time.Minute):
		t.Fatal("chromedriver did not start within a minute")
	}
	b := &browser{t: t, session: base}
	var session struct{ SessionID string }
	b.post("/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName": "chrome",
		"goog:chromeOptions": map[string]any{"args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--user-data-dir=" + t.TempDir(),
		}},
		"goog:loggingPrefs": map[string]string{"browser": "ALL", "performance": "ALL"},
	}}}, &session)
	b.session = base + "/session/" + session.SessionID
	t.Cleanup(func() {
		req, err := http.NewRequest(http.MethodDelete, b.session, nil)
		if err != nil {
			return
		}
		if resp, err := http.DefaultClient.Do(req); err == nil {
			resp.Body.Close()
		}
		http.DefaultClient.CloseIdleConnections()
	})
	return b
}

func (b *browser) do(method, path string, body, result any) {
	b.t.Helper()
	var data []byte
	if method == http.MethodPost {
		var err error
		if data, err = json.Marshal(body); err != nil {
			b.t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(b.t.Context(), method, b.session+path, bytes.NewReader(data))
	if err != nil {
		b.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		b.t.Fatalf("%s %s: %s: %.600s", method, path, resp.Status, answer)
	}
	if result == nil {
		return
	}
	if err := json.Unmarshal(answer, &struct{ Value any }{result}); err != nil {
		b.t.Fatalf("%s %s: %v: %.600s", method, path, err, answer)
	}
}

func (b *browser) post(path string, body, result any) {
	b.t.Helper()
	b.do(http.MethodPost, path, body, result)
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.post("/url", map[string]any{"url": url}, nil)
}

// eval runs a script, which returns a value.
func (b *browser) eval(script string, result any) {
	b.t.Helper()
	b.post("/execute/sync", map[string]any{"script": script, "args": []any{}}, result)
}

// cdp sends a command of the DevTools protocol.
func (b *browser) cdp(command string, params map[string]any, result any) {
	b.t.Helper()
	b.post("/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, result)
}

// text returns what there is to read in an element.
func (b *browser) text(id string) (text string) {
	b.t.Helper()
	b.eval(fmt.Sprintf("return document.getElementById(%q).textContent.replace(/\\s+/g, ' ')", id), &text)
	return text
}

// look sets the size and the colours of the window.
func (b *browser) look(width, height int, phone bool, scheme string) {
	b.t.Helper()
	b.cdp("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}, nil)
	b.cdp("Emulation.setEmulatedMedia", map[string]any{"features": []any{map[string]any{"name": "prefers-color-scheme", "value": scheme}}}, nil)
}

// picture returns a PNG of the window, or of the whole page.
func (b *browser) picture(whole bool) []byte {
	b.t.Helper()
	if !whole {
		return b.screenshot(map[string]any{"format": "png"})
	}
	var metrics struct {
		CSSContentSize struct{ Width, Height float64 }
	}
	b.cdp("Page.getLayoutMetrics", map[string]any{}, &metrics)
	return b.clip(metrics.CSSContentSize.Width, min(metrics.CSSContentSize.Height, 6000))
}

// clip returns a PNG of the upper part of the page.
func (b *browser) clip(width, height float64) []byte {
	b.t.Helper()
	return b.screenshot(map[string]any{
		"format": "png", "captureBeyondViewport": true,
		"clip": map[string]any{"x": 0, "y": 0, "width": width, "height": height, "scale": 1},
	})
}

func (b *browser) screenshot(params map[string]any) []byte {
	b.t.Helper()
	var shot struct{ Data string }
	b.cdp("Page.captureScreenshot", params, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}

// complaints returns what the console has, and the requests that went elsewhere than to one origin.
func (b *browser) complaints(origin string) (list []string) {
	b.t.Helper()
	type entry struct{ Level, Message string }
	var entries []entry
	b.post("/se/log", map[string]any{"type": "browser"}, &entries)
	for _, e := range entries {
		list = append(list, e.Level+" "+e.Message)
	}
	entries = nil
	b.post("/se/log", map[string]any{"type": "performance"}, &entries)
	for _, e := range entries {
		var event struct {
			Message struct {
				Method string
				Params struct{ Request struct{ URL string } }
			}
		}
		if err := json.Unmarshal([]byte(e.Message), &event); err != nil {
			b.t.Fatal(err)
		}
		if url := event.Message.Params.Request.URL; event.Message.Method == "Network.requestWillBeSent" && !strings.HasPrefix(url, origin+"/") &&
			!strings.HasPrefix(url, "chrome://") && !strings.HasPrefix(url, "data:") { // the browser's own first page
			list = append(list, "request to "+url)
		}
	}
	return list
}
