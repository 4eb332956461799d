// Package statusset has sets of HTTP statuses for settings.
package statusset

// The statuses that a set can hold.
const (
	Min = 100
	Max = 599
)

// Set is a set of HTTP statuses from Min to Max. The zero value is empty. Sets can be compared with ==.
type Set struct {
	bits [(Max - Min + 32) / 32]uint32 // of 4 bytes, so that small fields beside a Set take no more room
}

// invalid is the bit, beyond those of statuses, that says that a number that is no status was added.
const invalid = Max - Min + 1

// Of returns the set of the given statuses.
func Of(statuses ...int) Set {
	var s Set
	for _, status := range statuses {
		s.Add(status)
	}
	return s
}

// Add adds a status. A number that is none makes the set invalid.
func (s *Set) Add(status int) {
	i := uint(status - Min) // huge below Min
	if i > Max-Min {
		i = invalid
	}
	s.bits[i/32] |= 1 << (i % 32)
}

// Valid reports whether only statuses were added.
func (s *Set) Valid() bool { return s.bits[invalid/32]&(1<<(invalid%32)) == 0 }

// Has reports whether status is in the set.
func (s *Set) Has(status int) bool {
	i := uint(status - Min)
	return i <= Max-Min && s.bits[i/32]&(1<<(i%32)) != 0
}

// Least returns the least status in the set, or Max if there is none.
func (s *Set) Least() int {
	for status := Min; status < Max; status++ {
		if s.Has(status) {
			return status
		}
	}
	return Max
}
