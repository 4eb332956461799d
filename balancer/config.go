package balancer

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"reflect"
	"time"

	"github.com/nosidecar/mesh/internal/fraction"
)

// Algorithm is a way to pick.
type Algorithm uint8

const (
	// LeastRequest compares two endpoints drawn by weight and takes the one with fewer calls in flight for its weight.
	LeastRequest Algorithm = iota

	// RoundRobin takes the endpoints in turn, as often as their weights say.
	RoundRobin

	// Random draws an endpoint by weight.
	Random

	// PeakEWMA compares two endpoints drawn by weight, or more (Choices), and takes the one with the lowest product of latency
	// and calls in flight. Latency is the average of the latest few answers, which are forgotten with time: an endpoint that has
	// not been used for a while counts as a little faster than usual, and is tried again. A call counts before it is answered, by
	// the time it has taken so far, and errors count as latency, so that failing fast does not attract calls. For a short tail
	// choose 10 Choices and an Aperture of 10: docs/performance.md has the figures.
	PeakEWMA

	// RingHash sends equal keys to the same endpoint. When an endpoint comes or goes, only its own keys move.
	RingHash

	// Maglev sends equal keys to the same endpoint, with a more even share and a cheaper lookup than RingHash; a few
	// more keys move when an endpoint comes or goes.
	Maglev

	// WeightedRoundRobin takes the endpoints in turn, as often as their weights and the load that they report say (gRFC A58): in
	// proportion to their requests per second for each unit of utilization, to which errors per request are added, times the median
	// utilization if that is above 1. Endpoints report in the headers of their answers, as ORCA defines it, or through
	// [Host.Report]. Reports count once an endpoint has reported for 10 seconds, each for 3 minutes, and change the weights once per
	// second. An endpoint without one has the mean of the others; with fewer than two that report, it is RoundRobin. A report moves
	// the share of an endpoint to at most 4 times and at least 1/20 of that of the median.
	WeightedRoundRobin
)

var algorithms = [...]string{
	LeastRequest: "least request", RoundRobin: "round robin", Random: "random", PeakEWMA: "peak EWMA", RingHash: "ring hash", Maglev: "maglev",
	WeightedRoundRobin: "weighted round robin",
}

// String returns the name of a.
func (a Algorithm) String() string {
	if int(a) < len(algorithms) {
		return algorithms[a]
	}
	return fmt.Sprintf("Algorithm(%d)", uint8(a))
}

// Config says how a [Balancer] picks. The zero value is least request over all endpoints that are not ejected. Equal
// compares Configs.
type Config struct {
	// Algorithm is the way to pick. The zero value is [LeastRequest].
	Algorithm Algorithm

	// Choices is the number of endpoints that LeastRequest and PeakEWMA compare, 2 to 10. 0 means 2.
	Choices int

	// Aperture, with PeakEWMA, has a client with few calls use only some of the endpoints, others than other clients do: as
	// many as get 13 calls per second each, but at least this number. It has no effect where endpoints have different
	// weights. 0 means all endpoints.
	Aperture int

	// Decay is the time after which PeakEWMA has forgotten about 63% of a latency. 0 means 1s, and less than 1ms counts as 1ms.
	Decay time.Duration

	// MinRingSize and MaxRingSize bound the entries of the RingHash ring, up to 8,388,608. 0 means 1,024 and 8,388,608. The
	// ring grows with the number of endpoints, so that each gets keys; it exceeds MaxRingSize only to give each endpoint one
	// entry.
	MinRingSize, MaxRingSize int

	// TableSize is the size of the Maglev table, a prime up to 5,000,011. 0 means 65,537. With more endpoints than that the
	// table grows, so that each gets keys.
	TableSize int

	// BoundedLoad is the most calls in flight an endpoint may have, as a multiple of its fair share by weight; 1.25 is
	// usual. A call that would exceed it goes to another endpoint; with a hash key, always to the same others. 0 means no
	// bound; other values below 1 are errors.
	BoundedLoad float64

	// SlowStart sends less traffic to new endpoints at first.
	SlowStart SlowStart

	// PanicFraction is the fraction of the endpoints that must be healthy, from 0 to 1: if fewer are, ejections are ignored
	// and all endpoints can be picked. It is Istio's minHealthPercent. 0 means never: when all are ejected, Pick refuses.
	// With Locality, it is the fraction in one place, and applies only when all places together cannot carry the calls.
	PanicFraction float64

	// Locality prefers near endpoints.
	Locality Locality

	// HashKey is where RingHash and Maglev find the key of a call.
	HashKey HashKey
}

// SlowStart raises the traffic of a new endpoint gradually. If more than half of the set would be new, new endpoints get
// their full share at once. It cannot be combined with RingHash or Maglev. The zero value is off.
type SlowStart struct {
	// Window is the time until an endpoint has its full share. 0 means no slow start.
	Window time.Duration

	// MinFraction is the least fraction of its full share that an endpoint gets, up to 1. 0 means 0.1; negative means none.
	MinFraction float64

	// Aggression shapes the rise: the share is (time/Window)^(1/Aggression). 0 means 1, a straight line.
	Aggression float64
}

const (
	maxRing      = 8 << 20
	maxTableSize = 5000011
)

// settings is what picks need of a Config, with its defaults filled in and its Locality compiled.
type settings struct {
	Algorithm                Algorithm
	Choices                  uint8
	counts                   bool // a release only counts a call out
	MinRingSize, MaxRingSize int32
	TableSize                int32
	BoundedLoad              float64
	SlowStart                SlowStart
	PanicFraction            float64

	topology topology

	// For PeakEWMA.
	rate      uint64  // ticks per nanosecond, as a part of 1<<64
	tick      float32 // in grains
	usualTick uint8   // the binary logarithm of how many ticks pass from one change of the usual latency to the next
}

// Validate returns an error that names the field if the settings cannot be honoured.
func (c Config) Validate() error {
	_, err := c.compile()
	return err
}

// Equal reports whether the settings are the same.
func (c Config) Equal(other Config) bool {
	return reflect.DeepEqual(c, other) // on reloads, not on calls
}

// compile checks c and fills in its defaults.
func (c Config) compile() (settings, error) {
	topology, err := c.Locality.compile()
	if err != nil {
		err = fmt.Errorf("balancer: Config.Locality: %w", err)
	}
	if err = cmp.Or(c.checkPick(), c.checkHash(), c.SlowStart.check(c.Algorithm), err); err != nil {
		return settings{}, err
	}
	set := settings{
		Algorithm: c.Algorithm, Choices: uint8(cmp.Or(c.Choices, 2)),
		MaxRingSize: int32(cmp.Or(c.MaxRingSize, maxRing)), TableSize: int32(cmp.Or(c.TableSize, 65537)),
		BoundedLoad: c.BoundedLoad, SlowStart: c.SlowStart, PanicFraction: c.PanicFraction,
		topology: topology,
	}
	set.counts = c.Algorithm != PeakEWMA && c.Algorithm != WeightedRoundRobin && c.BoundedLoad == 0
	set.setDecay(max(cmp.Or(c.Decay, time.Second), time.Millisecond))
	set.MinRingSize = cmp.Or(int32(c.MinRingSize), min(1024, set.MaxRingSize))
	set.SlowStart.MinFraction = cmp.Or(set.SlowStart.MinFraction, 0.1)
	set.SlowStart.Aggression = cmp.Or(set.SlowStart.Aggression, 1)
	return set, nil
}

func (c *Config) checkPick() error {
	compares := c.Algorithm == LeastRequest || c.Algorithm == PeakEWMA
	switch {
	case c.Algorithm > WeightedRoundRobin:
		return fmt.Errorf("balancer: Config.Algorithm is %d, want one of this package", c.Algorithm)
	case c.Choices != 0 && (c.Choices < 2 || c.Choices > 10):
		return fmt.Errorf("balancer: Config.Choices is %d, want 2 to 10", c.Choices)
	case c.Choices != 0 && !compares:
		return fmt.Errorf("balancer: Config.Choices does not go with %v", c.Algorithm)
	case c.Aperture < 0 || c.Aperture == 1:
		return fmt.Errorf("balancer: Config.Aperture is %d, want 2 or more", c.Aperture)
	case c.Aperture != 0 && c.Algorithm != PeakEWMA:
		return fmt.Errorf("balancer: Config.Aperture does not go with %v", c.Algorithm)
	case c.Decay < 0:
		return fmt.Errorf("balancer: Config.Decay is %v, want 0 or more", c.Decay)
	case c.Decay != 0 && c.Algorithm != PeakEWMA:
		return fmt.Errorf("balancer: Config.Decay does not go with %v", c.Algorithm)
	case c.BoundedLoad != 0 && !(c.BoundedLoad >= 1 && c.BoundedLoad <= math.MaxInt32):
		return fmt.Errorf("balancer: Config.BoundedLoad is %v, want 1 or more", c.BoundedLoad)
	case !fraction.Valid(c.PanicFraction):
		return fmt.Errorf("balancer: Config.PanicFraction is %v, want 0 to 1", c.PanicFraction)
	}
	return nil
}

// checkHash checks the settings of the hashing algorithms.
func (c *Config) checkHash() error {
	switch {
	case (c.MinRingSize != 0 || c.MaxRingSize != 0) && c.Algorithm != RingHash:
		return fmt.Errorf("balancer: Config.MinRingSize and MaxRingSize do not go with %v", c.Algorithm)
	case c.MinRingSize < 0 || c.MinRingSize > maxRing:
		return fmt.Errorf("balancer: Config.MinRingSize is %d, want 1 to %d", c.MinRingSize, maxRing)
	case c.MaxRingSize < 0 || c.MaxRingSize > maxRing:
		return fmt.Errorf("balancer: Config.MaxRingSize is %d, want 1 to %d", c.MaxRingSize, maxRing)
	case c.MaxRingSize != 0 && c.MinRingSize > c.MaxRingSize:
		return fmt.Errorf("balancer: Config.MinRingSize is %d, which is above MaxRingSize (%d)", c.MinRingSize, c.MaxRingSize)
	case c.TableSize != 0 && c.Algorithm != Maglev:
		return fmt.Errorf("balancer: Config.TableSize does not go with %v", c.Algorithm)
	case c.TableSize != 0 && (c.TableSize > maxTableSize || !isPrime(c.TableSize)):
		return fmt.Errorf("balancer: Config.TableSize is %d, want a prime up to %d", c.TableSize, maxTableSize)
	case !c.Algorithm.hashes() && !reflect.DeepEqual(c.HashKey, HashKey{}):
		return fmt.Errorf("balancer: Config.HashKey does not go with %v", c.Algorithm)
	}
	if err := c.HashKey.check(); err != nil {
		return fmt.Errorf("balancer: Config.HashKey: %w", err)
	}
	return nil
}

func (a Algorithm) hashes() bool {
	return a == RingHash || a == Maglev
}

func (a Algorithm) inTurn() bool {
	return a == RoundRobin || a == WeightedRoundRobin
}

func (s SlowStart) check(a Algorithm) error {
	switch {
	case s.Window < 0:
		return fmt.Errorf("balancer: Config.SlowStart.Window is %v, want 0 or more", s.Window)
	case s.Window == 0 && s != SlowStart{}:
		return errors.New("balancer: Config.SlowStart has no Window")
	case s.Window != 0 && a.hashes():
		return fmt.Errorf("balancer: Config.SlowStart does not go with %v", a)
	case !(s.MinFraction <= 1):
		return fmt.Errorf("balancer: Config.SlowStart.MinFraction is %v, want at most 1", s.MinFraction)
	case !(s.Aggression >= 0 && s.Aggression <= math.MaxFloat64):
		return fmt.Errorf("balancer: Config.SlowStart.Aggression is %v, want 0 or more", s.Aggression)
	}
	return nil
}

func isPrime(n int) bool {
	if n < 2 {
		return false
	}
	for d := 2; d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return true
}
