package caller

import (
	"context"
	"reflect"
)

// SameContext reports whether two contexts are the same. Unlike ==, it does not panic if they contain values of types that are not
// comparable; it then returns false.
func SameContext(a, b context.Context) (same bool) {
	if t := reflect.TypeOf(a); t != nil && t.Kind() == reflect.Pointer { // as nearly all are
		return a == b
	}
	defer func() {
		if recover() != nil {
			same = false
		}
	}()
	return a == b
}
