package balancer

import (
	"math"
	"math/bits"
	"sync/atomic"
	"time"
)

// learned is what picks by PeakEWMA look at, in one cache line with the beginning of its Host. An answer changes two words: each is an atomic
// operation, and these take most of the time of a pick.
type learned struct {
	state   atomic.Uint64 // see Host.state
	answers atomic.Uint64 // see answers
	host    *Host
	_       [8]byte
}

// tick is the unit of the times here. A period has 1<<period of them: what was learned loses half of its weight in it. Times are kept modulo
// some power of 2 of periods, at least 3 hours by default: an endpoint that is called again after just that time seems to be known for a while.
type tick = uint64

const period = 18

// setDecay sets what depends on the time in which 63% of a latency are forgotten.
func (s *settings) setDecay(decay time.Duration) {
	perTick := float64(decay) * math.Ln2 / (1 << period) // in ns, more than 1
	s.rate = uint64(math.MaxUint64 / perTick)
	s.tick = float32(perTick / float64(grain))
	s.usualTick = uint8(max(0, math.Log2(float64(time.Millisecond)/perTick)))
}

// ticks returns a time, or a length of time, that is not negative.
func (s *settings) ticks(ns int64) tick {
	t, _ := bits.Mul64(uint64(ns), s.rate)
	return t
}

// weight returns what an answer weighs at a time: one at the beginning of a period, and almost twice as much at its end. What was learned before
// does not lose weight until then. Within a period, a straight line stands for the power of 2, which is cheap.
func weight(now tick) uint64 { return one + now>>(period-oneBits)&(one-1) }

// answers are the number of answers and the time that was waited for them, each by its weight in one period: units of 1/one, and grains.
type answers uint64

const (
	oneBits = 8
	one     = 1 << oneBits

	// From the lowest bit: the number of the period, that of the answers, and the time.
	periodBits = 14
	numberBits = 12

	// grain is the unit of latencies. longest is the longest latency, and what an error costs at most; longer ones count as that.
	grain   = 4 * time.Nanosecond
	longest = uint64(time.Minute / grain)

	// early is how many periods a time may lie before one that is known already: calls do not end in the order of their times.
	early = 64

	// faded is what the answers lose of their weight with each further one, in sixteenths. So at most 16/faded of them count, about 5, and a
	// change is noticed within a few.
	faded = 3
)

// at returns the answers by their weight in the period of now.
func (a answers) at(now tick) (waited, number uint64) {
	age := (now>>period - uint64(a)) & (1<<periodBits - 1)
	if age > 63 {
		if age > 1<<periodBits-early {
			age = 0
		} else {
			age = 63
		}
	}
	return uint64(a) >> (periodBits + numberBits) >> (age & 63), uint64(a) >> periodBits & (1<<numberBits - 1) >> (age & 63)
}

func packAnswers(waited, number uint64, now tick) uint64 {
	return waited<<(periodBits+numberBits) | number<<periodBits | now>>period&(1<<periodBits-1)
}

// began returns the state of a host without calls in flight when one begins.
func began(state uint64, now tick) uint64 {
	return state&^since | now<<sinceShift&since&^overlapped + 1
}

// enter counts a call in, unless the state has one of the given bits.
func (l *learned) enter(now tick, unless uint64) bool {
	for {
		state := l.state.Load()
		if state&unless != 0 {
			return false
		}
		next := state + 1
		if state&calls == 0 {
			next = began(state, now)
		}
		if l.state.CompareAndSwap(state, next) {
			return true
		}
	}
}

// leave notes that a call has ended, after a latency that is 0 if it is not known, and counts it out. A call that was alone in flight was
// answered that long after since: most calls therefore need no reading of the clock.
func (h *Host) leave(latency time.Duration, failed bool) {
	l, b := h.learned, h.balancer
	latency = max(latency, 0)
	state := l.state.Load()
	now := state>>sinceShift + b.cfg.ticks(int64(latency))
	if state&calls > 1 || state&overlapped != 0 {
		now = b.cfg.ticks(b.now())
	}
	if latency > 0 || failed {
		h.learn(now, min(uint64(latency)/uint64(grain), longest), failed)
	}
	if state&calls == 1 {
		h.exit()
		return
	}
	for {
		state = l.state.Load()
		next := state - 1
		if next&calls > 0 { // those are waited for
			next = next&^since | now<<sinceShift&since | overlapped
		}
		if l.state.CompareAndSwap(state, next) {
			break
		}
	}
	if state&gone != 0 {
		h.drain()
	}
}

// learn learns from an answer.
func (h *Host) learn(now tick, latency uint64, failed bool) {
	l, b := h.learned, h.balancer
	if !failed {
		b.usual.observe(uint32(now>>b.cfg.usualTick), float32(int64(latency)))
	}
	w := weight(now)
	for {
		last := l.answers.Load()
		waited, number := answers(last).at(now)
		sample := latency
		if failed {
			// However slow the others are, errors make this one look slower.
			sample = max(sample, min(max(2*(waited+b.assumed(w))*one/(number+w), errorCost), longest))
		}
		waited += sample*w>>oneBits - waited*faded/16
		number += w - number*faded/16
		if l.answers.CompareAndSwap(last, packAnswers(waited, number, now)) {
			return
		}
	}
}

// assumed is the time that was waited for the answer that is assumed of each endpoint, if that has a weight.
func (b *Balancer) assumed(weight uint64) uint64 {
	return uint64(int64(prior / one * b.usual.latency() * float32(int64(weight))))
}

// usual is the average latency of all endpoints as a float32, in grains, and below that when it last changed, in some unit of about a
// millisecond. It takes in one answer per unit, so that processors hardly contend for it.
type usual struct{ bits atomic.Uint64 }

// slowness is how many answers are averaged.
const slowness = 16

// latency returns the latency, at least a microsecond.
func (u *usual) latency() float32 {
	return max(float32(time.Microsecond/grain), math.Float32frombits(uint32(u.bits.Load()>>32)))
}

func (u *usual) observe(now uint32, latency float32) {
	last := u.bits.Load()
	if last != 0 {
		if uint32(last) == now {
			return
		}
		average := math.Float32frombits(uint32(last >> 32))
		latency = average + (latency-average)/slowness
	}
	u.bits.CompareAndSwap(last, uint64(math.Float32bits(latency))<<32|uint64(now))
}
