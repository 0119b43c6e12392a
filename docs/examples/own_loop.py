# docs/examples/own_loop.py
import hybridrl

with hybridrl.open("configs/quickstart.yaml", run={"name": "own-loop"}) as run:
    print("held out before", run.evaluate())
    while run.step < run.config.run.steps:
        groups = run.sample(run.prompts())
        run.score(groups)
        metrics = run.train_step(groups)
        run.push_weights()
        print(
            run.step, f"reward {metrics['critic/score/mean']:.2f}", f"entropy {metrics['actor/entropy']:.2f}"
        )
    print("held out after", run.evaluate())
    print("model in", run.export())