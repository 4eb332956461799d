package balancer

// SetRand makes the picks of b draw from rand. It must be called before b is used.
func SetRand(b *Balancer, rand func() uint64) { b.rand = rand }
