"""A development workflow (code_generation, build, test, deployment) as a service of its own.

It uses `kintsugi_client` and nothing else of this repository. On its own, with the stack and the roles running
(`kintsugi up`, then `kintsugi run all`):

    python -m examples.development --count 10 --seed 7
"""
