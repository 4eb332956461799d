package spans

import (
	"encoding/hex"
	"math/rand/v2"
	"regexp"
	"testing"

	"github.com/nosidecar/mesh/internal/field"
)

// The digits are those that package hex writes.
func TestPutHex(t *testing.T) {
	numbers := []uint64{0, 1, 0x0123456789abcdef, 0xfedcba9876543210, 0x9999999999999999, 0xaaaaaaaaaaaaaaaa, 1<<64 - 1}
	for range 1000 {
		numbers = append(numbers, rand.Uint64())
	}
	for _, n := range numbers {
		var bytes [8]byte
		for i := range bytes {
			bytes[i] = byte(n >> (56 - 8*i))
		}
		var got [16]byte
		if putHex(got[:], n); string(got[:]) != hex.EncodeToString(bytes[:]) {
			t.Errorf("putHex(%#x) wrote %q, want %x", n, got, bytes)
		}
	}
}

func TestUUID(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	for range 1000 {
		seed := rand.Uint64()
		id := uuid(seed)
		if !form.MatchString(id) {
			t.Errorf("the UUID of %#x is %q", seed, id)
		}
		if again := uuid(seed); again != id {
			t.Errorf("the UUIDs of %#x are %q and %q", seed, id, again)
		}
	}
}

// Whoever copies a header field by field knows all headers of traces.
func TestHeadersOfTracesAreKnown(t *testing.T) {
	for _, name := range headers {
		if !field.CarriesTrace(name) {
			t.Errorf("CarriesTrace(%q) = false", name)
		}
	}
}
