package response_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/nosidecar/mesh/internal/response"
)

var errGone = errors.New("the client is gone")

// gone is a writer as net/http's are: its FlushError says what became of the client.
type gone struct{ *httptest.ResponseRecorder }

func (gone) FlushError() error { return errGone }

func TestFlushError(t *testing.T) {
	var r response.Recorder
	if err := http.NewResponseController(r.Watch(gone{httptest.NewRecorder()})).Flush(); err != errGone {
		t.Errorf("Flush = %v, want what the writer below says", err)
	}
	if r.Status != http.StatusOK {
		t.Errorf("status %d after a flush, want 200", r.Status)
	}
}
