package field

// Values has room for the values of several headers. As part of a larger allocation, it makes setting these headers free of further
// allocations.
type Values struct {
	used int
	room [8]string
}

// Of returns value as the values of a header. It allocates only if there is no room left.
func (v *Values) Of(value string) []string {
	if v.used == len(v.room) {
		return []string{value}
	}
	i := v.used
	v.room[i] = value
	v.used++
	return v.room[i:v.used:v.used]
}
