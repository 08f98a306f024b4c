import tseslint from 'typescript-eslint';

export default tseslint.config(
  { ignores: ['lib/', '.test-build/', 'jupyterlab_gpuslice/labextension/', 'node_modules/'] },
  {
    files: ['src/**/*.{ts,tsx}', 'tests/**/*.ts'],
    extends: [tseslint.configs.strictTypeChecked],
    languageOptions: {
      parserOptions: {
        project: ['tsconfig.json', 'tsconfig.test.json'],
        tsconfigRootDir: import.meta.dirname
      }
    },
    rules: {
      'no-console': 'error',
      eqeqeq: 'error',
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/restrict-template-expressions': [
        'error',
        { allowNumber: true, allowNullish: true }
      ]
    }
  },
  {
    files: ['jupyterlab_gpuslice/*.js'],
    rules: {
      'no-console': 'error',
      'no-unused-vars': 'error',
      'prefer-const': 'error',
      eqeqeq: 'error'
    }
  }
);
