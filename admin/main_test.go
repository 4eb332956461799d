package admin_test

import (
	"flag"
	"os"
	"testing"

	"github.com/nosidecar/mesh/internal/leak"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(leak.Run(m))
}
