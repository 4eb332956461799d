package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	var out bytes.Buffer
	if err := run(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"istio_requests_total{destination_service_name=orders, response_code=200} 3",
		"istio_requests_total{destination_service_name=orders, response_code=404} 1",
		"istio_request_duration_milliseconds{destination_service_name=orders, response_code=200} count 3",
		"mesh_ready{} 1",
	} {
		if !strings.Contains(out.String(), want+"\n") {
			t.Errorf("the output does not contain %q:\n%s", want, out.String())
		}
	}
}
