import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicLong;

/** Compiled code, garbage collection, threads and locks; each round checks itself and is counted aloud. */
public class Hot {
    static final AtomicLong[] STEPS = new AtomicLong[4];
    static final ConcurrentHashMap<Long, String> MAP = new ConcurrentHashMap<>();

    static long mix(long seed, int rounds) {
        long x = seed;
        double y = 1.0;
        for (int i = 0; i < rounds; i++) {
            x ^= x << 13;
            x ^= x >>> 7;
            x ^= x << 17;
            y = y * 1.0000001 + 0.5;
        }
        return x ^ Double.doubleToLongBits(y);
    }

    static void work(int number) {
        while (true) {
            long step = STEPS[number].incrementAndGet();
            long key = step % 1000 * 4 + number;
            MAP.put(key, "value " + key);
            if (step % 100 == 0) {
                try {
                    Thread.sleep(5);
                } catch (InterruptedException e) {
                    throw new IllegalStateException(e);
                }
            }
        }
    }

    public static void main(String[] args) throws Exception {
        for (int i = 0; i < STEPS.length; i++) {
            final int number = i;
            STEPS[i] = new AtomicLong();
            Thread thread = new Thread(() -> work(number));
            thread.setDaemon(true);
            thread.start();
        }
        long expected = mix(42, 200_000);
        for (int round = 1; ; round++) {
            long[] before = new long[STEPS.length];
            for (int i = 0; i < STEPS.length; i++) {
                before[i] = STEPS[i].get();
            }
            if (mix(42, 200_000) != expected) {
                System.out.println("damaged: another result in round " + round);
                System.exit(1);
            }
            List<String> garbage = new ArrayList<>();
            for (int i = 0; i < 5000; i++) {
                garbage.add("round " + round + " string " + i);
            }
            for (int i = 0; i < garbage.size(); i++) {
                if (!garbage.get(i).endsWith(" " + i)) {
                    System.out.println("damaged: " + garbage.get(i));
                    System.exit(1);
                }
            }
            MAP.forEach((key, value) -> {
                if (!value.equals("value " + key)) {
                    System.out.println("damaged: " + key + " is " + value);
                    System.exit(1);
                }
            });
            Thread.sleep(20);
            for (int i = 0; i < STEPS.length; i++) {
                for (int wait = 0; STEPS[i].get() == before[i]; wait++) {
                    Thread.sleep(10);
                    if (wait > 2000) {
                        System.out.println("damaged: thread " + i + " stands still");
                        System.exit(1);
                    }
                }
            }
            System.out.println("Round " + round);
        }
    }
}
