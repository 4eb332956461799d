package admin_test

import (
	"context"
	"errors"
	"iter"
	"regexp"
	"strings"
	"testing"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
	"github.com/nosidecar/mesh/discovery"
	"github.com/nosidecar/mesh/internal/await"
	"github.com/nosidecar/mesh/internal/leak"
	"github.com/nosidecar/mesh/internal/meshtest"
	"github.com/nosidecar/mesh/tlsid"
)

// failing is a source of identities that has none.
type failing struct{}

func (failing) Watch(ctx context.Context) iter.Seq2[*tlsid.Identity, error] {
	return func(yield func(*tlsid.Identity, error) bool) {
		yield(nil, errors.New("the agent is <down>"))
		<-ctx.Done()
	}
}

// An identity that has not arrived has no name and does not expire.
func TestIdentityThatHasNotArrived(t *testing.T) {
	leak.Check(t)
	page := admin.New(admin.Config{})
	defer page.Close()
	m := meshtest.New(t, "", mesh.WithDiscovery(new(discovery.Memory)), mesh.WithLateIdentity(failing{}), mesh.WithObserver(page.Observer()))
	await.True(t, "the failure", func() bool { return m.Status().Identity.Error != "" })
	if text := ask(t, page, "?format=text").Body.String(); !strings.Contains(text, "\nidentity none yet: the agent is <down>\n") {
		t.Errorf("text: %s", text)
	}
	if html := ask(t, page, "?format=html").Body.String(); !strings.Contains(html, "<dd>no identity yet<br>") || !strings.Contains(html, "the agent is &lt;down&gt;") {
		t.Errorf("page: %s", html)
	}
}

// Whoever has no mouse reaches what is beside a table that is wider than the screen.
func TestWideTablesAreScrolledByKeyboard(t *testing.T) {
	s := newScene(t)
	html := ask(t, s.page, "?format=html").Body.String()
	scrolled := regexp.MustCompile(`<div class="scroll"[^>]*>`).FindAllString(html, -1)
	for _, one := range scrolled {
		if !regexp.MustCompile(`tabindex="0" role="region" aria-label="[^"]+"`).MatchString(one) {
			t.Errorf("%s cannot be reached", one)
		}
	}
	if len(scrolled) == 0 {
		t.Errorf("there is no table:\n%s", html)
	}
}
