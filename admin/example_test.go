package admin_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"

	"github.com/nosidecar/mesh"
	"github.com/nosidecar/mesh/admin"
)

func Example() {
	page := admin.New(admin.Config{Name: "orders"})
	defer page.Close()
	m, err := mesh.New(context.Background(), mesh.WithObserver(page.Observer()))
	if err != nil {
		log.Fatal(err)
	}
	defer m.Close()

	private := http.NewServeMux() // served on a port that only operators reach
	private.Handle("/debug/mesh/", page)

	answer := httptest.NewRecorder()
	private.ServeHTTP(answer, httptest.NewRequest("GET", "http://localhost:9090/debug/mesh/", nil))
	fmt.Println(answer.Code, answer.Header().Get("Content-Type"))
	// Output: 200 text/plain; charset=utf-8
}
